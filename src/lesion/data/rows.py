"""Files that hold one document a row: JSON lines, Parquet, CSV. Rows keep their order."""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lesion.data.documents import BadRows, Document, text_column, usable_text
from lesion.errors import InputError

RowReader = Callable[[Path, str | None, BadRows], Iterator[Document]]
CSV_ROWS_AT_ONCE = 1000


def read_json(path: Path, column: str | None, bad_rows: BadRows) -> Iterator[Document]:
    """JSON lines, or one JSON array of objects.

    Raises:
        InputError: no text column; or a bad row, named as `file:line`, where bad rows stop the run.
    """
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    rows = _json_array(path) if start.startswith(b"[") else _json_lines(path, bad_rows)
    chosen: str | None = None
    for where, row in rows:
        if not isinstance(row, dict):
            bad_rows.reject(f"{where}: the row is {type(row).__name__}, not an object with named columns")
            continue
        if chosen is None:
            chosen = text_column(list(row), column, where)
        if chosen not in row:
            bad_rows.reject(f"{where}: the row has no column '{chosen}'; columns found: {', '.join(row) or 'none'}")
            continue
        text = usable_text(row[chosen], where, bad_rows)
        if text is not None:
            yield Document(where, text)


def _json_lines(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, object]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not content.strip():
                continue
            try:
                row = json.loads(content.decode("utf-8"))
            except UnicodeDecodeError as error:
                bad_rows.reject(f"{where}: byte {error.start} of the line is not UTF-8")
            except (json.JSONDecodeError, RecursionError) as error:
                bad_rows.reject(f"{where}: not JSON ({error})")
            else:
                yield where, row


def _json_array(path: Path) -> Iterator[tuple[str, object]]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not a JSON array ({error.msg})") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path} row {number}", row


def read_parquet(path: Path, column: str | None, bad_rows: BadRows) -> Iterator[Document]:
    """The rows of one Parquet file.

    Raises:
        InputError: damaged file, no text column, a text column that is not of strings, or a bad row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            chosen = text_column(file.schema_arrow.names, column, str(path))
            kind = file.schema_arrow.field(chosen).type
            values = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)):
                raise InputError(f"{path}: column '{chosen}' holds {kind}, not strings; name another with #COLUMN")
            scalars = (scalar for batch in file.iter_batches(1024, columns=[chosen]) for scalar in batch.column(0))
            yield from _parquet_rows(path, scalars, bad_rows)
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from error


def _parquet_rows(path: Path, scalars: Iterable[object], bad_rows: BadRows) -> Iterator[Document]:
    for number, scalar in enumerate(scalars, start=1):
        where = f"{path} row {number}"
        try:
            value = scalar.as_py()  # type: ignore[attr-defined]
        except UnicodeDecodeError as error:
            bad_rows.reject(f"{where}: byte {error.start} of the text is not UTF-8")
            continue
        text = usable_text(value, where, bad_rows)
        if text is not None:
            yield Document(where, text)


def read_csv(path: Path, column: str | None, bad_rows: BadRows) -> Iterator[Document]:
    """The rows of one comma-separated file (`.tsv`: tab-separated) with a header; an empty field is an empty text.

    Raises:
        InputError: no header, no text column, a row with too many fields, or a bad row.
    """
    import pandas as pd

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    # surrogateescape: a bad byte becomes a surrogate, which usable_text then finds and names by row
    encoding = {"encoding": "utf-8-sig", "encoding_errors": "surrogateescape"}
    try:
        columns = list(pd.read_csv(path, sep=separator, nrows=0, index_col=False, **encoding).columns)  # type: ignore[call-overload]
        chosen = text_column(columns, column, str(path))
        chunks = pd.read_csv(  # type: ignore[call-overload]
            path,
            sep=separator,
            usecols=[chosen],
            dtype=object,
            keep_default_na=False,
            chunksize=CSV_ROWS_AT_ONCE,
            index_col=False,
            **encoding,
        )
        with chunks:
            values = (value for chunk in chunks for value in chunk[chosen])
            for number, value in enumerate(values, start=1):
                where = f"{path} row {number}"
                text = usable_text(value, where, bad_rows)
                if text is not None:
                    yield Document(where, text)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path} is not a readable table: {error}") from error


ROW_READERS: dict[str, RowReader] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tsv": read_csv,
}
