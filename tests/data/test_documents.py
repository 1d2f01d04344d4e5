"""What is read: the grammar of DATA, every kind of file, and what is said when it cannot be read."""

import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lesion.data.documents import BadRows
from lesion.data.sources import parse_domains
from lesion.errors import InputError


def texts(spec, policy="fail"):
    (domain,) = parse_domains(str(spec))
    return [document.text for document in domain.source.documents(BadRows(policy))]


def skipped(spec):
    (domain,) = parse_domains(str(spec))
    bad_rows = BadRows("skip")
    return [document.text for document in domain.source.documents(bad_rows)], bad_rows.count


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.py", "x.unheard-of", "README"])
def test_any_named_file_is_one_document(tmp_path, name):
    (tmp_path / name).write_text("one\n\ntwo\n")
    assert texts(tmp_path / name) == ["one\n\ntwo\n"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbftext\nhello\n")
    for suffix in ("txt", "jsonl", "csv"):
        assert texts(tmp_path / f"x.{suffix}") == ["hello"]
    (tmp_path / "inside.txt").write_bytes(b"a\xef\xbb\xbfb")
    assert texts(tmp_path / "inside.txt") == ["a\ufeffb"]


def test_row_files_keep_their_order_and_choose_their_column(tmp_path):
    rows = [{"id": i, "content": f"c{i}", "other": f"o{i}"} for i in range(5)]
    write_lines(tmp_path / "x.jsonl", *rows)
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    pd.DataFrame(rows).to_csv(tmp_path / "x.tsv", index=False, sep="\t")
    for name in ("x.jsonl", "array.json", "x.parquet", "x.csv", "x.tsv"):
        assert texts(tmp_path / name) == [f"c{i}" for i in range(5)]
        assert texts(f"{tmp_path / name}#other") == [f"o{i}" for i in range(5)]


def test_text_is_preferred_to_content(tmp_path):
    assert texts(write_lines(tmp_path / "x.jsonl", {"content": "no", "text": "yes"})) == ["yes"]


def test_quoted_newlines_and_na_are_text_in_csv(tmp_path):
    (tmp_path / "x.csv").write_text('id,text\n1,"two\nlines"\n2,NA\n3,\n')
    assert texts(tmp_path / "x.csv") == ["two\nlines", "NA", ""]


def test_dictionary_columns_of_parquet_are_strings(tmp_path):
    column = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    assert texts(tmp_path / "x.parquet") == ["x", "y", "x"]


def test_folder_is_recursive_in_an_order_that_depends_on_names_alone(tmp_path):
    names = [f"{part}/{i}.txt" for part in ("a", "b") for i in range(10)]
    for folder, order in (("first", names), ("second", names[::-1])):
        for name in order:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(name)
    first = texts(tmp_path / "first")
    assert sorted(first) == sorted(names)
    assert first == texts(tmp_path / "second")
    assert first != sorted(names)  # the start of an alphabetical order is no fair sample
    assert texts(tmp_path / "first" / "*" / "1.txt") == [name for name in first if name.endswith("/1.txt")]
    assert sorted(texts(tmp_path / "first" / "**" / "*.txt")) == sorted(names)


def test_folder_leaves_out_what_is_no_text(tmp_path):
    (tmp_path / ".git").mkdir()
    for name in (".git/x.txt", ".hidden.txt", "picture.png", "package.json"):
        (tmp_path / name).write_text("no")
    with pytest.raises(InputError, match=r"holds no text files .* found: 1 \.\w+, 1 \.\w+"):
        texts(tmp_path)
    (tmp_path / "x.txt").write_text("yes")
    assert texts(tmp_path) == ["yes"]


def test_linked_folders_are_entered_once(tmp_path):
    inner = tmp_path / "data" / "inner"
    inner.mkdir(parents=True)
    (inner / "x.txt").write_text("x")
    (inner / "loop").symlink_to(tmp_path / "data")
    (inner / "itself").symlink_to(inner / "itself")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "y.txt").write_text("y")
    (inner / "linked").symlink_to(tmp_path / "outside")
    assert sorted(texts(tmp_path / "data")) == ["x", "y"]
    assert texts(tmp_path / "data" / "**" / "x.txt") == ["x"]


def test_names_of_domains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("web.txt", "a=b.txt", "c#d.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    specs = [
        "stdlib",
        "code=stdlib:code",
        "web.txt",
        "other=web.txt",
        "a=b.txt",
        "e=c#d.jsonl",
        "hf:org/set:c@test#col",
    ]
    domains = parse_domains(specs)
    assert [domain.name for domain in domains] == ["stdlib", "code", "web", "other", "a=b", "e", "set"]
    assert [domain.spec for domain in domains][-3:] == ["a=b.txt", "c#d.jsonl", "hf:org/set:c@test#col"]
    assert str(domains[-1].source.spec) == "hf:org/set:c@test"
    assert [d.text for d in domains[4].source.documents(BadRows("fail"))] == ['{"text": "x"}\n']
    assert [d.text for d in domains[5].source.documents(BadRows("fail"))] == ["x"]
    assert parse_domains(str(tmp_path))[0].name == tmp_path.name
    assert parse_domains(str(tmp_path / "*.txt"))[0].name == tmp_path.name


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no data given"),
        ("", "names no data"),
        ("web=", "names no data"),
        (["stdlib", "stdlib"], "two domains are named 'stdlib'"),
        (["x=stdlib", "x=stdlib:code"], "two domains are named 'x'"),
        ("stdlib:poems", "stdlib:code and stdlib:prose"),
        ("hf:", "does not have the form"),
        ("no/such/file.txt", "there is no file or folder 'no/such/file.txt'"),
        ("web=no/such/file.txt", "there is no file or folder 'no/such/file.txt'"),
        ("no/such/*.txt", "matches no file"),
        ("x" * 5000, "cannot be looked up: File name too long"),
        ("a\0b", "NUL"),
    ],
)
def test_data_that_means_nothing(specs, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_domains(specs)
    assert "\n" not in str(caught.value)


def test_two_asterisks_within_a_name(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match=r"not a glob|matches no file"):
        texts(tmp_path / "**.md")


def test_empty_file_and_special_file(tmp_path):
    (tmp_path / "x.txt").touch()
    with pytest.raises(InputError, match=r"x\.txt is empty"):
        texts(tmp_path / "x.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        texts(tmp_path / "pipe")


LINES = b'{"text": "good"}\n%s\n\n{"text": "also"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"x\.jsonl:2: not JSON"),
        (b'{"text": "\xff"}', r"x\.jsonl:2: byte 10 of the line is not UTF-8"),
        (b'{"text": null}', r"x\.jsonl:2: the text is null"),
        (b'{"text": 7}', r"x\.jsonl:2: the text is int, not a string"),
        (b'{"text": ["a"]}', r"x\.jsonl:2: the text is list, not a string"),
        (b'{"text": "a\\ud800"}', r"x\.jsonl:2: character 1 .* U\+D800, a lone surrogate"),
        (b'{"body": "a"}', r"x\.jsonl:2: the row has no column 'text'; columns found: body"),
        (b'["text"]', r"x\.jsonl:2: the row is list, not an object"),
        (b"[" * 100_000, r"x\.jsonl:2: not JSON"),
    ],
)
def test_bad_rows_are_named_or_skipped_and_counted(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_bytes(LINES % line)
    with pytest.raises(InputError, match=message):
        texts(tmp_path / "x.jsonl")
    assert skipped(tmp_path / "x.jsonl") == (["good", "also"], 1)
    (tmp_path / "x.jsonl").write_bytes(LINES % b'{"text": "fine \\ud83d\\ude00"}')
    assert skipped(tmp_path / "x.jsonl") == (["good", "fine \U0001f600", "also"], 0)


def test_bad_rows_of_tables(tmp_path):
    pd.DataFrame({"text": ["good", None]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet row 2: the text is null"):
        texts(tmp_path / "x.parquet")
    assert skipped(tmp_path / "x.parquet") == (["good"], 1)
    broken = pa.array([b"good", b"\xff\xfe"]).view(pa.utf8())
    pq.write_table(pa.table({"text": broken}), tmp_path / "y.parquet")
    with pytest.raises(InputError, match=r"y\.parquet row 2: byte 0 of the text is not UTF-8"):
        texts(tmp_path / "y.parquet")
    assert skipped(tmp_path / "y.parquet") == (["good"], 1)
    (tmp_path / "z.csv").write_bytes(b"text\ngood\nb\xffd\n")
    with pytest.raises(InputError, match=r"z\.csv row 2: byte 1 of the text is not UTF-8"):
        texts(tmp_path / "z.csv")
    assert skipped(tmp_path / "z.csv") == (["good"], 1)
    (tmp_path / "w.csv").write_text("text\ngood\nb,c,d\n7\n")
    with pytest.raises(InputError, match=r"w\.csv row 2: 3 fields, not 1"):
        texts(tmp_path / "w.csv")
    assert skipped(tmp_path / "w.csv") == (["good", "7"], 1)
    (tmp_path / "w.csv").write_text("text\nb,c,d\n")
    assert skipped(tmp_path / "w.csv") == ([], 1)


def test_bad_text_files(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"one\ntw\xf6\n")
    with pytest.raises(InputError, match=r"latin\.txt:2: byte 6 of the file is not UTF-8"):
        texts(tmp_path / "latin.txt")
    (tmp_path / "program.txt").write_bytes(b"\x7fELF\x00\x01")
    with pytest.raises(InputError, match=r"program\.txt is a binary file \(byte 4 is NUL\)"):
        texts(tmp_path / "program.txt")
    (tmp_path / "good.txt").write_text("good")
    assert skipped(tmp_path) == (["good"], 2)


def test_files_without_a_text_column(tmp_path):
    rows = [{"headline": "h", "score": 1.5}]
    write_lines(tmp_path / "x.jsonl", *rows)
    pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    for suffix in ("jsonl", "parquet", "csv"):
        path = tmp_path / f"x.{suffix}"
        with pytest.raises(InputError, match=r"no text column .*; columns found: headline, score; name one with"):
            texts(path, "skip")  # a file that has no text is no bad row
        with pytest.raises(InputError, match=r"no column 'body'; columns found: headline, score"):
            texts(f"{path}#body")
        assert texts(f"{path}#headline") == ["h"]
    with pytest.raises(InputError, match="column 'score' holds double, not strings"):
        texts(f"{tmp_path}/x.parquet#score")


def test_damaged_tables(tmp_path):
    pd.DataFrame({"text": ["a" * 500]}).to_parquet(tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"x\.parquet is not a readable Parquet file"):
        texts(tmp_path / "x.parquet")
    assert texts(tmp_path / "whole.parquet") == ["a" * 500]
    (tmp_path / "x.csv").write_text("\n\n")
    with pytest.raises(InputError, match=r"x\.csv is not a readable table: .* cannot infer"):
        texts(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes(b"t\xffxt\na\n")
    with pytest.raises(InputError, match=r"x\.csv: the header is not UTF-8"):
        texts(tmp_path / "x.csv")
    (tmp_path / "x.json").write_text('[{"text": "a"},\n{"text": ]')
    with pytest.raises(InputError, match=r"x\.json:2: not a JSON array"):
        texts(tmp_path / "x.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.txt").chmod(0)
    with pytest.raises(InputError, match=r"x\.txt cannot be read: Permission denied"):
        texts(tmp_path / "x.txt")


@pytest.mark.parametrize("content", ["[" * 100_000, '[{"text": "a", "n": ' + "9" * 5000 + "}]"])
def test_json_that_python_gives_up_on(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json: not a JSON array"):
        texts(tmp_path / "x.json")


def test_a_number_that_python_gives_up_on_is_a_bad_row(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "n": ' + "9" * 5000 + '}\n{"text": "b"}\n')
    assert skipped(tmp_path / "x.jsonl") == (["b"], 1)
    with pytest.raises(InputError, match=r"x\.jsonl:1: not JSON"):
        texts(tmp_path / "x.jsonl")


def test_a_home_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="home folder that is not there"):
        parse_domains("~nobody-of-this-name/text")
