"""Faults 45 and 57: paths of every kind for the model, the data and the run; they work, or one line says why not."""

import json
import os
import shutil
from pathlib import Path

import pytest

import lesion
from lesion.errors import InputError, LesionError, ModelError, RunFolderError
from lesion.report import write_report
from lesion.results import RunView
from tests.faults.conftest import Run

NOT_TEXT = os.fsdecode(b"caf\xe9")
NAMES = {
    "spaces": " two  spaces ",
    "unicode": "模型-données-🔬",
    "255 bytes": "é" * 127 + "x",
    "right to left": "نموذج",
    "shell": "$(rm -rf x); & 'y' \"z\" `w`",
    "html": "<script>alert(1)<script>",
    "not UTF-8": NOT_TEXT,
    "line": "one\ntwo",
    "hash": "a#b",
    "equals": "a=b",
    "glob": "[x]*?",
}


def test_a_model_folder_whose_name_is_no_text(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """The library that reads weights takes paths that are text; it is said, and nothing is written."""
    folder = shutil.copytree(tiny_folder, tmp_path / NOT_TEXT)
    with pytest.raises(ModelError, match="not valid UTF-8") as caught:
        lesion.layers(str(folder), str(text_file), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


REPORTED = {NOT_TEXT, NAMES["255 bytes"], NAMES["html"]}
"""Reports take seconds: of those names that a page or a picture could stumble over."""


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names_for_everything(name: str, tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    model, data, out = (tmp_path / place / name for place in ("models", "data", "runs"))
    model = model.with_name("base") if name == NOT_TEXT else model
    shutil.copytree(tiny_folder, model)
    data.mkdir(parents=True)
    shutil.copy(text_file, data / "rows.jsonl")
    reading = lesion.Reading(tokens=200, context=32)
    asked = {"interventions": ["drop"], "layers": [0], "reading": reading}
    first = lesion.layers(str(model), str(data), out=out, **asked)  # type: ignore[arg-type]
    if name in REPORTED:
        assert "<script>alert" not in write_report(out).read_text(encoding="utf-8")
    assert RunView.open(out).manifest["status"] == "complete"
    assert lesion.layers(str(model), str(data), out=out, **asked).resumed_complete  # type: ignore[arg-type]
    named = lesion.layers(str(model), str(data), out=tmp_path / "named", name_folder=True, **asked)  # type: ignore[arg-type]
    assert named.path is not None
    assert named.path.parent == tmp_path / "named"
    assert named.tables["layers"].equals(first.tables["layers"])


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names_of_a_text_file(name: str, loaded: lesion.anatomy.Model, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("the cat sat on the mat")
    outcome = lesion.layers(
        loaded, str(path), interventions=["drop"], layers=[0], out=tmp_path / "run", reading=lesion.Reading(context=32)
    )
    (domain,) = outcome.tables["layers_by_domain"]["domain"]
    assert domain == os.fsencode(Path(name).stem).decode("utf-8", "replace")


def test_loops_of_links(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ModelError, match="loop"):
        lesion.layers(str(loop), str(text_file))
    with pytest.raises(InputError, match="loop"):
        lesion.layers(tiny_folder, str(loop))
    with pytest.raises(RunFolderError, match="loop"):
        lesion.layers(tiny_folder, str(text_file), out=loop, reading=lesion.Reading(context=32))
    with pytest.raises(InputError, match="loop"):
        lesion.load_images(str(loop), size=4, channels=1)
    around = tmp_path / "data"
    around.mkdir()
    (around / "again").symlink_to(around)
    shutil.copy(text_file, around / "rows.jsonl")
    reading = lesion.Reading(context=32)
    table = lesion.layers(tiny_folder, str(around), interventions=["drop"], reading=reading).tables["layers"]
    assert table["n_documents"].iloc[0] == 12  # each once


def test_a_linked_run_folder_is_one_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    first = run(tmp_path / "link")
    assert run(tmp_path / "real").resumed_complete
    assert not first.resumed_complete


@pytest.mark.parametrize("place", ["/proc/lesion-run", "/dev/null/run", "/dev/null"])
def test_places_where_nothing_can_be_written(run: Run, place: str) -> None:
    with pytest.raises(RunFolderError, match=place) as caught:
        run(Path(place))
    assert "--out" in str(caught.value)


def test_a_read_only_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the operating system, because root may write everywhere."""

    def refuse(self: Path, *arguments: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", refuse)
        with pytest.raises(RunFolderError, match=r"cannot use .*Permission denied; pass another --out"):
            run(tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    run(tmp_path / "run")


def test_a_folder_of_another_version(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    manifest = json.loads(path.read_text())
    for change, says in (
        ({"schema": 99}, "has schema 99"),
        ({"identity": {**manifest["identity"], "lesion": "0.0.1"}}, r'lesion: "0\.0\.1" → '),
    ):
        path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(LesionError, match=says):
            run(tmp_path / "run")
    path.write_text(json.dumps(manifest))
    assert run(tmp_path / "run").resumed_complete
