"""Datasets of the hub: what is asked of `datasets`, how much is read, and what is said when it fails."""

from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from lesion.data import load_images, load_text
from lesion.errors import InputError


@pytest.fixture
def hub(monkeypatch):
    """Replaces the hub by rows; remembers what was asked for and how many rows were taken."""

    class Hub:
        def __init__(self):
            self.rows, self.asked, self.taken, self.revision, self.commit = [], None, 0, None, None

        def load_dataset(self, path, name=None, *, split, streaming, revision=None):
            self.asked, self.revision = (path, name, split, streaming), revision
            for row in self.rows:
                if isinstance(row, Exception):
                    raise row
                self.taken += 1
                yield row

        def dataset_info(self, api, path, *, timeout):
            if isinstance(self.commit, Exception):
                raise self.commit
            return SimpleNamespace(sha=self.commit)

        def at(self, commit):
            """From now on the hub answers: with a commit, or an error."""
            self.commit = commit
            monkeypatch.setattr(HfApi, "dataset_info", lambda api, path, **rest: self.dataset_info(api, path, **rest))

    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    return hub


def test_spec_reaches_the_hub_and_rows_keep_their_order(hub, no_bos, cache):
    hub.rows = [{"body": "a b", "text": "f f"}, {"body": "c d e", "text": "f f"}]
    data = load_text("hf:org/set:config@valid#body", no_bos, context=8, cache=cache)
    assert hub.asked == ("org/set", "config", "valid", True)
    assert [data.document(i).tolist() for i in range(2)] == [[4, 5], [6, 7, 8]]
    assert data.domains == ("set",)
    load_text("hf:set", no_bos, context=8, cache=cache)
    assert hub.asked == ("set", None, "train", True)


@pytest.mark.parametrize("pack", [False, True])
def test_only_what_the_budget_needs_is_read(hub, no_bos, cache, pack):
    hub.rows = [{"text": "a b c d"}] * 1000
    data = load_text("hf:set", no_bos, context=4, tokens=40, pack=pack, cache=cache)
    assert (data.n_tokens, data.n_documents, hub.taken) == (40, 10, 10)


def test_second_call_opens_the_cache_without_the_hub(hub, no_bos, cache):
    hub.rows = [{"text": "a b"}]
    first = load_text("hf:set", no_bos, context=4, cache=cache)
    assert "notes" not in first.description
    hub.rows = [ConnectionError("gone")]
    again = load_text("hf:set", no_bos, context=4, cache=cache)
    assert again.fingerprint == first.fingerprint
    assert again.description["notes"] == ["the hub was not asked, what was read before is used: HF_HUB_OFFLINE is set"]
    with pytest.raises(InputError):
        load_text("hf:set@test", no_bos, context=4, cache=cache)


def test_bad_rows(hub, no_bos, cache):
    hub.rows = [{"text": "a b"}, {"text": None}, {"text": "a\ud800"}, {"text": "c d"}]
    with pytest.raises(InputError, match="hf:set@train row 2: the text is null"):
        load_text("hf:set", no_bos, context=4, cache=cache)
    data = load_text("hf:set", no_bos, context=4, cache=cache, on_bad_row="skip")
    assert data.n_documents == 2
    assert data.description["domains"]["set"]["n_bad_rows"] == 2
    hub.rows = [{"question": "a", "answer": "b"}]
    with pytest.raises(InputError, match="columns found: question, answer"):
        load_text("hf:other", no_bos, context=4, cache=cache)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route"),
        ValueError("Unknown split 'x'\nShould be one of"),
        RuntimeError("scripts are no longer supported"),
        datasets.exceptions.DatasetNotFoundError("does not exist"),
    ],
)
def test_failures_are_one_line(hub, no_bos, cache, error):
    hub.rows = [{"text": "a b"}, error]
    with pytest.raises(InputError, match="hf:set@train cannot be read") as caught:
        load_text("hf:set", no_bos, context=4, cache=cache)
    assert "\n" not in str(caught.value)
    assert not list(cache.rglob("*.bin"))


def test_lost_connection_of_the_http_client(hub, no_bos, cache):
    hub.rows = [HfHubHTTPError.__bases__[0]("reset by peer")]
    with pytest.raises(InputError, match="reset by peer"):
        load_text("hf:set", no_bos, context=4, cache=cache)


def test_no_network(no_bos, cache):
    with pytest.raises(InputError, match=r"hf:lesion-no/such@train cannot be read: .*HF_HUB_OFFLINE"):
        load_text("hf:lesion-no/such", no_bos, context=4, cache=cache)


def test_a_dataset_is_read_again_when_the_hub_has_another_commit(hub, no_bos, cache):
    def read():
        return load_text("hf:set", no_bos, context=4, cache=cache)

    hub.at("c0ffee" * 6)
    hub.rows = [{"text": "a b"}]
    first = read()
    assert (hub.revision, hub.taken) == ("c0ffee" * 6, 1)
    assert first.description["revisions"] == {"set": "c0ffee" * 6}
    assert (read().fingerprint, hub.taken) == (first.fingerprint, 1)
    hub.at("beef" * 9)
    hub.rows = [{"text": "c d"}]
    second = read()
    assert (hub.revision, hub.taken) == ("beef" * 9, 2)
    assert second.fingerprint != first.fingerprint
    hub.at(ConnectionError("no route"))
    offline = read()
    assert (offline.fingerprint, hub.taken) == (second.fingerprint, 2)
    (note,) = offline.description["notes"]
    assert "what was read before is used (set at beefbeefbeef): hf:set@train cannot be read: no route" in note


def test_an_absent_hub_is_asked_once(hub, no_bos, cache):
    """`datasets` would try for half a minute."""
    hub.at(HfHubHTTPError.__bases__[0]("Name or service not known"))
    hub.rows = [{"text": "a b"}]
    with pytest.raises(InputError, match="hf:set@train cannot be read: Name or service not known; check its name"):
        load_text("hf:set", no_bos, context=4, cache=cache)
    with pytest.raises(InputError, match="Name or service not known"):
        load_images("hf:set", size=4, channels=1)
    assert (hub.taken, hub.asked) == (0, None)
