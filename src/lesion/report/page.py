"""One self-contained page: templates, our own style and script, and the policy that allows nothing else."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lesion.report.content import Curve, FigureSpec, Section, Series, TableSpec
from lesion.report.facts import cut, made
from lesion.report.figures import clean, inline_panels, legend_lines, span
from lesion.report.palette import palette_css
from lesion.report.svg import legal, legend_key
from lesion.report.tables import Table, table_of

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_NAME, LONGEST_COMMAND = 200, 5000
MOST_ROWS = 2000
"""Rows of a table that the page shows: a megabyte or two."""


@dataclass(frozen=True)
class PageFigure:
    """A figure, drawn."""

    number: int
    identifier: str
    spec: FigureSpec
    panels: list[Markup]
    wide: bool
    legend: list[tuple[Markup, str]]


@dataclass(frozen=True)
class PageTable:
    """A table, formatted."""

    number: int
    identifier: str
    spec: TableSpec
    table: Table


@dataclass(frozen=True)
class PageSection:
    """A section with its figures and tables numbered through the page; `elsewhere` are figures that are files only."""

    identifier: str
    subject: str
    section: Section
    figures: list[PageFigure]
    elsewhere: list[str]
    tables: list[PageTable]
    manifest: dict[str, Any]
    made: list[tuple[str, list[tuple[str, str]]]]

    @property
    def command(self) -> str:
        """The command of the run; of one with very many files, its beginning."""
        return cut(str(self.manifest["command"]), LONGEST_COMMAND)

    @property
    def reason(self) -> str:
        """Why the run ended early, where that is known."""
        return cut(str(self.manifest.get("reason") or ""))


def render(parts: Sequence[tuple[dict[str, Any], Section]]) -> str:
    """The page of one or several runs, each given by its manifest and its section."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8") + palette_css()
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = list(_numbered(parts))
    subjects = list(dict.fromkeys(section.subject for section in sections))
    page: str = environment.get_template("page.html").render(
        title=f"{', '.join(subjects)} · lesion",
        subjects=subjects,
        sections=sections,
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
    )
    return page


def policy(style: str, script: str) -> str:
    """The content security policy: our own inline style and script by their digests, pictures as data, no more."""
    return (
        f"default-src 'none'; style-src '{_source(style)}'; script-src '{_source(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _numbered(parts: Sequence[tuple[dict[str, Any], Section]]) -> Iterator[PageSection]:
    figures, tables = 0, 0
    for index, (manifest, section) in enumerate(parts, start=1):
        on_page = [spec for spec in section.figures if spec.on_page]
        drawn = [_figure(spec, figures + k, f"s{index}-f{k}") for k, spec in enumerate(on_page, start=1)]
        shown = [
            PageTable(tables + k, f"s{index}-t{k}", s, table_of(s.frame.head(MOST_ROWS)))
            for k, s in enumerate(section.tables, 1)
        ]
        figures, tables = figures + len(drawn), tables + len(shown)
        elsewhere = [spec.name for spec in section.figures if not spec.on_page]
        subject = clean(section.subject, LONGEST_NAME)
        yield PageSection(f"s{index}", subject, section, drawn, elsewhere, shown, manifest, list(made(manifest)))


def _figure(spec: FigureSpec, number: int, identifier: str) -> PageFigure:
    panels = [Markup(panel) for panel in inline_panels(spec, identifier)]
    legend = [(Markup(_key(line)), clean(line.label, LONGEST_NAME)) for line in legend_lines(spec)]
    wide = any(span(panel) > 1 for panel in spec.panels)
    return PageFigure(number, identifier, spec, panels, wide, legend)


def _key(line: Series | Curve) -> str:
    return legend_key(line.role, line.marker, dashed=isinstance(line, Curve) and line.dashed)


def _shown(value: object) -> object:
    """Text without the characters that a page cannot hold, or that turn the text after them around; all the rest."""
    return legal(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _source(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode()
