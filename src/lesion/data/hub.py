"""Datasets of the Hugging Face hub, streamed."""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lesion.data.documents import BadRows, Document, text_column, usable_text
from lesion.errors import InputError

ANSWER_SECONDS = 10
HUB_SPEC = re.compile(r"hf:(?P<id>[^:@#]+)(?::(?P<config>[^@#]+))?(?:@(?P<split>[^#]+))?(?:#(?P<column>.+))?")


@dataclass(frozen=True)
class HubSpec:
    """`hf:ID[:CONFIG][@SPLIT][#COLUMN]`, taken apart."""

    id: str
    config: str | None
    split: str
    column: str | None

    def __str__(self) -> str:
        return f"hf:{self.id}" + (f":{self.config}" if self.config else "") + f"@{self.split}"


def parse_hub_spec(spec: str) -> HubSpec:
    """Takes `hf:ID[:CONFIG][@SPLIT][#COLUMN]` apart; the split defaults to `train`.

    Raises:
        InputError: it does not have that form.
    """
    match = HUB_SPEC.fullmatch(spec)
    if match is None:
        raise InputError(f"'{spec}' does not have the form hf:ID[:CONFIG][@SPLIT][#COLUMN]")
    return HubSpec(match["id"], match["config"], match["split"] or "train", match["column"])


def hub_revision(spec: HubSpec) -> str | None:
    """The commit that the dataset is at now; None where the hub must not be asked (`HF_HUB_OFFLINE`).

    One question with one answer: `datasets` would try to reach an absent hub for half a minute.

    Raises:
        InputError: no such dataset, or no answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with _one_line(spec):
        try:
            return HfApi().dataset_info(spec.id, timeout=ANSWER_SECONDS).sha
        except OfflineModeIsEnabled:
            return None


def stream_rows(spec: HubSpec, revision: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a dataset in their order, read only as far as they are asked for.

    Args:
        revision: a commit of the dataset; None reads what is there now.

    Raises:
        InputError: no such dataset, configuration or split; no network; a connection lost on the way.
    """
    import datasets

    # Its retries would each print a line in front of our one.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    pinned = {} if revision is None else {"revision": revision}
    with _one_line(spec):
        yield from datasets.load_dataset(spec.id, spec.config, split=spec.split, streaming=True, **pinned)


@contextlib.contextmanager
def _one_line(spec: HubSpec) -> Iterator[None]:
    """Failures of the hub, of the network and of the dataset itself as an `InputError`."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    # The bases of HfHubHTTPError: the errors of whichever HTTP client this huggingface_hub uses.
    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, *HfHubHTTPError.__bases__)
    try:
        yield
    except failures as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{spec} cannot be read: {reason}; check its name, configuration and split, the network, "
            "and HF_HUB_OFFLINE, or give --data a local file"
        ) from error


class HubText:
    """The text column of a dataset on the hub, streamed in order.

    Args:
        spec: `hf:ID[:CONFIG][@SPLIT][#COLUMN]`.
    """

    def __init__(self, spec: str) -> None:
        self.spec = parse_hub_spec(spec)
        self._revision: str | None = None

    def identity(self) -> object:
        """The spec alone: what the hub has under it is told apart by `revision`."""
        return {"hub": str(self.spec), "column": self.spec.column}

    def revision(self) -> str | None:
        """The commit that documents come from, from now on the same; None where the hub must not be asked.

        Raises:
            InputError: no such dataset, or no answer.
        """
        self._revision = self._revision or hub_revision(self.spec)
        return self._revision

    def documents(self, bad_rows: BadRows) -> Iterator[Document]:
        """One document a row.

        Raises:
            InputError: cannot be reached or read, no text column, or a bad row.
        """
        column: str | None = None
        for number, row in enumerate(stream_rows(self.spec, self._revision), start=1):
            if column is None:
                column = text_column(list(row), self.spec.column, str(self.spec))
            where = f"{self.spec} row {number}"
            text = usable_text(row.get(column), where, bad_rows)
            if text is not None:
                yield Document(where, text)
