"""Files that hold one document a row: JSON lines, Parquet, CSV. Rows keep their order."""

import codecs
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lesion.data.documents import BadRows, Document, text_column, usable_text
from lesion.errors import InputError

RowReader = Callable[[Path, str | None, BadRows], Iterator[Document]]
CSV_BYTES_AT_ONCE = 1 << 24  # a longer row is an error


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
            except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of thousands of digits
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
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON array that can be read ({error})") from error
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
            yield from _table_rows(path, scalars, bad_rows)
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from error


def read_csv(path: Path, column: str | None, bad_rows: BadRows) -> Iterator[Document]:
    """The rows of one comma-separated file (`.tsv`: tab-separated) with a header; an empty field is an empty text.

    Raises:
        InputError: no header, no text column, or a bad row (one with other fields than the header, too).
    """
    import pyarrow as pa
    import pyarrow.csv as pacsv

    misshapen: list[str] = []

    def skip(row: Any) -> str:
        # the header is row 1 to pyarrow
        misshapen.append(f"{path} row {row.number - 1}: {row.actual_columns} fields, not {row.expected_columns}")
        return "skip"

    def scalars(table: Iterable[Any]) -> Iterator[Any]:
        for column_chunk in itertools.chain((batch.column(0) for batch in table), [[]]):
            while misshapen:
                bad_rows.reject(misshapen.pop(0))
            yield from column_chunk

    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    parse = pacsv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=skip)
    read = pacsv.ReadOptions(use_threads=False, block_size=CSV_BYTES_AT_ONCE)
    try:
        with pacsv.open_csv(path, read, parse) as table:
            chosen = text_column(table.schema.names, column, str(path))
        misshapen.clear()
        # Read as bytes, whatever the text looks like: numbers stay text, and bad UTF-8 is found row by row.
        convert = pacsv.ConvertOptions(include_columns=[chosen], column_types={chosen: pa.binary()})
        with pacsv.open_csv(path, read, parse, convert) as table:
            yield from _table_rows(path, scalars(table), bad_rows)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the header is not UTF-8 ({error.reason} at byte {error.start} of a name)") from error
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a readable table: {error}") from error


def _table_rows(path: Path, scalars: Iterable[Any], bad_rows: BadRows) -> Iterator[Document]:
    for number, scalar in enumerate(scalars, start=1):
        where = f"{path} row {number}"
        try:
            value = scalar.as_py()
            text = usable_text(value.decode("utf-8") if isinstance(value, bytes) else value, where, bad_rows)
        except UnicodeDecodeError as error:
            bad_rows.reject(f"{where}: byte {error.start} of the text is not UTF-8")
            continue
        if text is not None:
            yield Document(where, text)


ROW_READERS: dict[str, RowReader] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tsv": read_csv,
}
