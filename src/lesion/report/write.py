"""From run folders to a page and its figures."""

from collections.abc import Sequence
from pathlib import Path

from lesion.errors import InputError, RunFolderError
from lesion.report.content import Section
from lesion.report.figures import write_files
from lesion.report.page import render
from lesion.report.sections import section_of
from lesion.results import RunView, atomic_write


def write_report(run: Path | str | Sequence[Path | str], *, out: Path | str | None = None) -> Path:
    """Writes `figures/*.svg` and `.png` into each run folder, and one self-contained page.

    Args:
        run: a run folder, or several: the page then has a section for each, in this order.
        out: where the page goes; `report.html` in the run folder if there is only one.

    Returns:
        The path of the page.

    Raises:
        InputError: several runs without `out`, or none.
        RunFolderError: a folder is no run, has no results yet, or its tables are not those it recorded.
    """
    paths = [Path(run)] if isinstance(run, Path | str) else [Path(one) for one in run]
    if not paths or (len(paths) > 1 and out is None):
        raise InputError(f"a report of {len(paths)} runs: give at least one, and --out for the page of several")
    views = [RunView.open(path) for path in paths]
    sections = [_section(view) for view in views]
    for view, section in zip(views, sections, strict=True):
        for figure in section.figures:
            write_files(figure, view.path / "figures")
    target = Path(out) if out is not None else views[0].path / "report.html"
    page = render([(view.manifest, section) for view, section in zip(views, sections, strict=True)])
    content = page.encode("utf-8", "replace")  # a lone surrogate in a name becomes a question mark
    atomic_write(target, lambda path: _write(path, content))
    return target


def _section(view: RunView) -> Section:
    try:
        return section_of(view)
    except KeyError as error:
        raise RunFolderError(f"{view.path / 'run.json'} or its tables lack {error}; give the command again") from error


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
