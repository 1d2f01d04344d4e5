"""Which ids a model gets, on ids written by hand."""

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lesion.data import load_text
from lesion.data.encoding import build_encoder, tokenizer_fingerprint
from lesion.errors import InputError

from .conftest import WORDS, backend


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="x"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        return str(path)

    return write


def ids(data):
    return [data.document(index).tolist() for index in range(data.n_documents)]


def test_bos_that_the_tokenizer_does_not_add(file, silent_bos, cache):
    spec = file("a b c", "d")
    load = lambda **options: ids(load_text(spec, silent_bos, context=8, cache=cache, **options))  # noqa: E731
    assert load() == [[1, 4, 5, 6], [1, 7]]
    assert load(bos="always") == [[1, 4, 5, 6], [1, 7]]
    assert load(bos="never") == [[4, 5, 6]]  # "d" alone has no next token


def test_bos_that_the_tokenizer_adds(file, adds_bos, cache):
    spec = file("a b c", "d")
    load = lambda **options: ids(load_text(spec, adds_bos, context=8, cache=cache, **options))  # noqa: E731
    assert load() == [[1, 4, 5, 6], [1, 7]]
    assert load(bos="always") == load()
    assert load(bos="never") == [[4, 5, 6]]


def test_tokenizer_without_bos(file, no_bos, cache):
    spec = file("a b c", "d")
    assert ids(load_text(spec, no_bos, context=8, cache=cache)) == [[4, 5, 6]]
    with pytest.raises(InputError, match="has no BOS token"):
        load_text(spec, no_bos, context=8, cache=cache, bos="always")


def test_cut_at_context_specials_included(file, adds_both, no_bos, cache):
    spec = file("a b c d e", "a b c", "a b")
    data = load_text(spec, adds_both, context=4, cache=cache)
    assert ids(data) == [[1, 4, 5, 6], [1, 4, 5, 6], [1, 4, 5, 2]]  # the end is lost; what fits keeps its </s>
    assert data.description["n_cut"] == 1
    assert data.lengths.tolist() == [4, 4, 4]
    assert ids(load_text(spec, no_bos, context=4, cache=cache)) == [[4, 5, 6, 7], [4, 5, 6], [4, 5]]


def test_long_document_is_cut_where_the_whole_would_be(file, no_bos, cache):
    text = "a " * 40 + " " * 3000 + "b c d e f " * 1000  # the first read ends in the blanks
    data = load_text(file(text), no_bos, context=60, cache=cache)
    assert data.document(0).tolist() == no_bos(text)["input_ids"][:60]
    assert data.document(0).tolist()[40:44] == [5, 6, 7, 8]


def test_masked_documents_keep_first_and_last_special(file, bert, cache):
    spec = file("a b c d e", "a", "", "[UNK] [SEP]")
    data = load_text(spec, bert, context=5, cache=cache, objective="masked")
    assert ids(data) == [[2, 5, 6, 7, 3], [2, 5, 3]]
    counts = data.description["domains"]["x"]
    assert (counts["n_cut"], counts["n_skipped_empty"]) == (1, 2)  # blank, and nothing between the specials


def test_masked_options_that_make_no_sense(file, bert, no_bos, cache):
    spec = file("a b c")
    load = lambda tokenizer, context=5, **options: load_text(  # noqa: E731
        spec, tokenizer, context=context, cache=cache, objective="masked", **options
    )
    for options, message in (
        ({"pack": True}, "packing is for causal"),
        ({"bos": "never"}, "bos='never' is for causal"),
        ({"context": 2}, "context 2 leaves no room .* at least 3"),
        ({"vocabulary_size": 4}, "mask token has id 4, but the model knows only 4"),
    ):
        with pytest.raises(InputError, match=message):
            load(bert, **options)
    with pytest.raises(InputError, match="has no mask token"):
        load(no_bos)
    assert load(bert, context=3, vocabulary_size=31).n_documents == 1


def test_packing_fills_sequences_and_counts_the_rest(file, silent_bos, cache):
    data = load_text(file("a b c", "", "d e", "f"), silent_bos, context=3, cache=cache, pack=True)
    assert ids(data) == [[1, 4, 5], [6, 1, 7], [8, 1, 9]]
    data = load_text(file("a b c", "d e", "f f"), silent_bos, context=4, cache=cache, pack=True, bos="never")
    assert ids(data) == [[4, 5, 6, 7]]
    assert data.description["domains"]["x"]["n_tokens_dropped"] == 3
    assert data.description["n_cut"] == 0
    with pytest.raises(InputError, match="7 tokens that do not fill a sequence of 8"):
        load_text(file("a b c", "d e", "f f"), silent_bos, context=8, cache=cache, pack=True, bos="never")


def test_packing_never_joins_domains(file, no_bos, cache):
    specs = [file("a b c", name="x"), file("d d d d", name="y")]
    data = load_text(specs, no_bos, context=2, cache=cache, pack=True)
    assert ids(data) == [[4, 5], [7, 7], [7, 7]]
    assert data.domain_of.tolist() == [0, 1, 1]


def test_budget_is_split_over_domains_and_the_last_document_is_whole(file, no_bos, cache):
    specs = [file(*["a b c"] * 50, name="x"), "second=" + file(*["d e"] * 50, name="y")]
    data = load_text(specs, no_bos, context=8, cache=cache, tokens=25)
    assert data.domains == ("x", "second")
    per_domain = {name: counts["n_tokens"] for name, counts in data.description["domains"].items()}
    assert per_domain == {"x": 15, "second": 12}  # asked for: 13 and 12
    assert data.n_tokens == data.lengths.sum() == 27
    assert np.bincount(data.domain_of).tolist() == [5, 6]
    assert load_text(specs, no_bos, context=8, cache=cache).n_tokens == 250
    packed = load_text(specs, no_bos, context=8, cache=cache, tokens=25, pack=True)
    assert {name: counts["n_tokens"] for name, counts in packed.description["domains"].items()} == {
        "x": 16,
        "second": 16,
    }
    with pytest.raises(InputError, match="1 tokens cannot be split over 2 domains"):
        load_text(specs, no_bos, context=8, cache=cache, tokens=1)


def test_packed_budget_stops_within_a_long_document(file, no_bos, cache):
    data = load_text(file("a " * 100), no_bos, context=8, cache=cache, tokens=20, pack=True)
    assert data.n_tokens == 24
    assert data.description["domains"]["x"]["n_tokens_dropped"] == 76


@pytest.mark.parametrize("rows", [[""], ["  \n", "\t"], ["a"]])
def test_nothing_to_run_on(file, no_bos, cache, rows):
    with pytest.raises(InputError, match=f"holds no document to run on; found {len(rows)} blank or shorter"):
        load_text(file(*rows), no_bos, context=8, cache=cache)
    assert load_text(file(*rows, "a b"), no_bos, context=8, cache=cache).description["domains"]["x"] == {
        "n_documents": 1,
        "n_tokens": 2,
        "n_skipped_empty": len(rows),
        "n_bad_rows": 0,
        "n_cut": 0,
        "n_tokens_dropped": 0,
    }


def test_ids_beyond_the_model_are_an_error_only_where_they_occur(file, no_bos, cache):
    low, high = file("a b c", name="low"), file("a f", name="high")
    assert load_text(low, no_bos, context=8, cache=cache, vocabulary_size=7).n_tokens == 3
    for _ in range(2):  # read, and from the cache
        with pytest.raises(InputError, match=r"token id 9, but the model knows only 9 ids; the tokenizer .* has 10"):
            load_text(high, no_bos, context=8, cache=cache, vocabulary_size=9)
        assert load_text(high, no_bos, context=8, cache=cache, vocabulary_size=10).n_tokens == 2


def test_padding_id_is_one_that_the_model_knows(file, no_bos, silent_bos, cache):
    spec = file("a b c", "a b")
    padded = lambda tokenizer, **options: (  # noqa: E731
        load_text(spec, tokenizer, context=8, cache=cache, bos="never", **options).batch([0, 1]).ids[1, 2].item()
    )
    assert padded(no_bos) == 3
    assert padded(silent_bos) == 0
    high_pad = PreTrainedTokenizerFast(tokenizer_object=backend([*WORDS, "[P]"]), unk_token="[UNK]", pad_token="[P]")
    assert padded(high_pad) == 10
    assert padded(high_pad, vocabulary_size=10) == 0


def test_other_refusals(file, no_bos, silent_bos, cache):
    spec = file("a b c")
    with pytest.raises(InputError, match="seed -1 is negative"):
        load_text(spec, no_bos, context=8, cache=cache, seed=-1)
    with pytest.raises(InputError, match="context 1 leaves no room"):
        load_text(spec, no_bos, context=1, cache=cache)
    data = load_text(spec, silent_bos, context=2, cache=cache)
    for wrong in (-1, 1):
        with pytest.raises(InputError, match=f"there is no document {wrong}"):
            data.document(wrong)
    with pytest.raises(InputError, match="at least one"):
        data.batch([])


def test_tokenizer_that_changes_the_text_around_specials(no_bos):
    class Odd:
        name_or_path, bos_token_id, all_special_ids = "odd", None, ()

        def __call__(self, texts, add_special_tokens, **options):
            return {"input_ids": [[9, 9] if add_special_tokens else [1, 2, 3] for _ in texts]}

    with pytest.raises(InputError, match="tokenizer odd encodes a text otherwise"):
        build_encoder(Odd(), objective="causal", context=8, bos="auto", pack=False)
    assert build_encoder(no_bos, objective="causal", context=8, bos="auto", pack=False).prefix == ()


def test_no_warning_about_long_sequences(file, silent_bos, cache, caplog):
    load_text(file("a b c d e f " * 50), silent_bos, context=8, cache=cache)  # its model_max_length is 4
    assert "longer than" not in caplog.text


def test_tokenizer_fingerprint_sees_words_and_specials_but_not_use(no_bos, silent_bos, adds_bos):
    before = tokenizer_fingerprint(no_bos)
    no_bos("a b c", truncation=True, max_length=2)
    no_bos(["a b c", "a"], padding=True)
    assert tokenizer_fingerprint(no_bos) == before
    other = PreTrainedTokenizerFast(tokenizer_object=backend(WORDS[::-1]), unk_token="[UNK]", pad_token="[PAD]")
    prints = [before, *map(tokenizer_fingerprint, (silent_bos, adds_bos, other))]
    assert len(set(prints)) == 4


def test_description_is_json(file, no_bos, cache):
    data = load_text(file("a b c"), no_bos, context=8, cache=cache, seed=3)
    again = json.loads(json.dumps(data.description))
    assert again["seed"] == 3
    assert again["tokenizer_fingerprint"] == tokenizer_fingerprint(no_bos)
    assert (again["context"], again["bos"], again["pack"], again["specs"][0][0]) == (8, "auto", False, "x")
