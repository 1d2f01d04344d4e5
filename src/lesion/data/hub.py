"""Datasets of the Hugging Face hub, streamed."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lesion.data.documents import BadRows, Document, text_column, usable_text
from lesion.errors import InputError

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


def stream_rows(spec: HubSpec) -> Iterator[dict[str, Any]]:
    """The rows of a dataset in their order, read only as far as they are asked for.

    Raises:
        InputError: no such dataset, configuration or split; no network; a connection lost on the way.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    # The bases of HfHubHTTPError: the errors of whichever HTTP client this huggingface_hub uses.
    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, *HfHubHTTPError.__bases__)
    # Its retries would each print a line in front of our one.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield from datasets.load_dataset(spec.id, spec.config, split=spec.split, streaming=True)
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

    def identity(self) -> object:
        """The spec alone: what is on the hub under it is taken to stay the same."""
        return {"hub": str(self.spec), "column": self.spec.column}

    def documents(self, bad_rows: BadRows) -> Iterator[Document]:
        """One document a row.

        Raises:
            InputError: cannot be reached or read, no text column, or a bad row.
        """
        column: str | None = None
        for number, row in enumerate(stream_rows(self.spec), start=1):
            if column is None:
                column = text_column(list(row), self.spec.column, str(self.spec))
            where = f"{self.spec} row {number}"
            text = usable_text(row.get(column), where, bad_rows)
            if text is not None:
                yield Document(where, text)
