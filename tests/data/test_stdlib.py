"""The embedded text."""

import pytest

from lesion.data import stdlib
from lesion.data.documents import BadRows, hash_order
from lesion.data.stdlib import StandardLibrary
from lesion.errors import InputError

LONG = "word " * 99 + "word"
A = f'''"""{LONG}"""
class A:
    def f(self):
        """Too short."""
    def g(self):
        """G {LONG}"""
'''
C = f'''try:
    def h():
        """
        H {LONG}
            in
        """
except ValueError:
    pass
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library in place of the real one."""
    files = {
        "a.py": A,
        "b/c.py": C,
        "copy.py": f'"""{LONG}"""\n',
        "empty/__init__.py": "",
        "pydoc_data/topics.py": "topics = {'assert': 'The assert '\n 'statement', 'bool': r'''B\nool'''}\n",
        "test/t.py": "no",
        "b/tests/t.py": "no",
        "site-packages/s.py": "no",
        "__pycache__/p.py": "no",
        "_sysconfigdata__linux.py": "no",
        "lib-dynload/x.so": "no",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(stdlib, "_folder", lambda: tmp_path)
    stdlib._source_files.cache_clear()
    stdlib._prose.cache_clear()
    yield tmp_path
    stdlib._source_files.cache_clear()
    stdlib._prose.cache_clear()


def read(*parts):
    return {d.name.removeprefix("stdlib:"): d.text for d in StandardLibrary(parts).documents(BadRows("fail"))}


def test_code_is_the_sources_without_tests(library):
    code = read("code")
    assert set(code) == {"a.py", "b/c.py", "copy.py"}
    assert code["a.py"] == (library / "a.py").read_text()


def test_prose_is_topics_and_long_docstrings(library):
    assert read("prose") == {
        "topic:assert": "The assert statement",
        "topic:bool": "B\nool",
        "a.py:": LONG,  # and not again as that of copy.py
        "a.py:.A.g": f"G {LONG}",
        "b/c.py:.h": f"H {LONG}\n    in",
    }


def test_order_is_that_of_the_names_hashes(library):
    both = list(read("code", "prose"))
    assert both == sorted(both, key=hash_order)
    assert both != sorted(both)
    assert [name for name in both if name in read("code")] == list(read("code"))
    assert set(both) == set(read("code")) | set(read("prose"))


def test_python_without_sources(library, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(stdlib, "_folder", lambda: tmp_path_factory.mktemp("empty"))
    with pytest.raises(InputError, match="no library sources"):
        read("code")


def test_the_real_library():
    documents = list(StandardLibrary(("code", "prose")).documents(BadRows("fail")))
    names = [document.name.removeprefix("stdlib:") for document in documents]
    assert {"json/decoder.py", "topic:lambda"} < set(names)
    assert any(name.startswith("collections/__init__.py:") for name in names)
    assert not any({"test", "tests", "site-packages"} & set(name.split("/")) for name in names)
    assert len(documents) > 1000
    # interleaved: either kind has its share of the first tenth
    prose = [":" in name for name in names]
    assert (
        abs(sum(prose[: len(prose) // 10]) / (len(prose) // 10) - sum(prose) / len(prose)) < 0.15
    )  # 3 sd of 180 draws
