"""`lesion copying`: copy tasks and induction heads."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lesion.cli.console import Output, errors_in_one_line, progress_on
from lesion.cli.options import (
    BatchOption,
    Bos,
    BosOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    EditOption,
    JsonOption,
    MemoryOption,
    OutOption,
    OverwriteOption,
    PickleOption,
    QuietOption,
    RemoteCodeOption,
    ResumeOption,
    StreamOption,
    chosen_batch_size,
    chosen_memory,
    names,
    numbers,
)
from lesion.cli.zero_modes.ending import number, page_of, print_grid, say
from lesion.errors import LesionError


class Cut(StrEnum):
    item = "item"
    end = "end"


MOST_SHOWN = 30
"""Rows of a table that the terminal shows; the page and the tables have them all."""
SETS = {"kinds": "zero_modes,random,random_matched", "scopes": "all", "seeds": "0,1,2"}
"""What the options that go with --masks are where they are not given."""


def copying(
    model: Annotated[str, typer.Argument(help="A folder, a hub id (owner/name[@revision]), or zoo:NAME.")],
    tasks: Annotated[str, typer.Option(help="Which, separated by commas.")] = "integers,tokens",
    examples: Annotated[int, typer.Option(help="Examples of each task.")] = 500,
    cut: Annotated[
        Cut,
        typer.Option(
            help="Where strings are cut: before a random item of the last repetition, or at their end (the answer is "
            "then what they begin with)."
        ),
    ] = Cut.item,
    through_text: Annotated[
        bool, typer.Option("--through-text", help="Decode random tokens and encode the text again.")
    ] = False,
    bos: BosOption = Bos.auto,
    seed: Annotated[int, typer.Option(help="Seed of the examples.")] = 0,
    edit: EditOption = None,
    condition: Annotated[
        list[str] | None,
        typer.Option("--condition", help="Measure all again under this edit; may be repeated, one at a time."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Measure all again with weights of these masks set to 0: a run folder of `zero-modes diff`, or a file."
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="With --masks: of zero_modes, complement, keep_only, random, random_matched.",
            show_default=SETS["kinds"],
        ),
    ] = None,
    scopes: Annotated[
        str | None,
        typer.Option(
            help="With --masks: all, layer:1, group:QK, head:1:2 …; layers, components, heads for all of a kind.",
            show_default=SETS["scopes"],
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="With --masks: of the random kinds.", show_default=SETS["seeds"])
    ] = None,
    heads: Annotated[
        str,
        typer.Option(
            help="Whose attention is followed under every condition and drawn: auto (induction heads), all, none "
            "(compute no attention), or 1:2,0:3 (layer:head)."
        ),
    ] = "auto",
    threshold: Annotated[float, typer.Option(help="Induction score of an induction head, at least.")] = 0.2,
    maps: Annotated[bool, typer.Option("--maps", help="Keep attention maps under every condition, too.")] = False,
    generate: Annotated[
        int, typer.Option(help="Also generate so many tokens, and follow attention at every step.")
    ] = 0,
    batch_size: BatchOption = "auto",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_pickle: PickleOption = False,
    stream: StreamOption = None,
    max_memory: MemoryOption = None,
    ignore_remote_code: RemoteCodeOption = False,
    out: OutOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Repeat integers and random tokens: does the model copy, with which heads, and what is left under edits?"""
    with errors_in_one_line(debug):
        output = Output(out, resume, overwrite, quiet, as_json)
        size, memory = chosen_batch_size(batch_size), chosen_memory(max_memory)
        sets = _sets(masks, {"kinds": kinds, "scopes": scopes, "seeds": seeds})
        from lesion.anatomy import Loading
        from lesion.data.copy_tasks import Drawing
        from lesion.engine import keep_pages
        from lesion.report import write_report
        from lesion.studies.copying import Looking, Sets, copying, read_heads

        keep_pages()
        with progress_on(output.console) as progress:
            outcome = copying(
                model,
                tasks=names(tasks),
                drawing=Drawing(examples, seed, cut.value, through_text, bos.value),
                base=edit or [],
                edits=condition or [],
                sets=Sets(str(masks), *sets) if sets else None,
                looking=Looking(read_heads(heads), threshold, maps),
                generate=generate,
                loading=Loading(device, dtype, allow_pickle, stream, memory, ignore_remote_code),
                batch_size=size,
                out=out or Path("runs"),
                name_folder=out is None,
                resume=resume,
                overwrite=overwrite,
                command=shlex.join(["lesion", *sys.argv[1:]]),
                progress=progress,
            )
        page = page_of(outcome) if outcome.resumed_complete else write_report(_path(outcome))
    say(output, outcome, status="partial" if outcome.partial else "complete", report=str(page))
    if not output.quiet:
        _print(outcome.tables)
        typer.echo(f"tables and maps: {outcome.path}")
        typer.echo(f"report: {page}")
    if outcome.partial:
        raise typer.Exit(3)


def _path(outcome: Any) -> Path:
    path: Path = outcome.path
    return path


def _sets(
    masks: Path | None, given: dict[str, str | None]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]] | None:
    """Kinds, scopes and seeds; None without masks."""
    if masks is None:
        if without := [name for name, text in given.items() if text is not None]:
            raise LesionError(f"--{without[0]} says which weights of masks are set; give the masks, with --masks")
        return None
    asked = {name: SETS[name] if text is None else text for name, text in given.items()}
    return tuple(names(asked["kinds"])), tuple(names(asked["scopes"])), tuple(numbers("--seeds", asked["seeds"]))


def _print(tables: dict[str, Any]) -> None:
    rows = tables["copying"].to_dict("records")
    cells = [
        [
            f"{row['task']}, {row['condition']}",
            number(100 * row["accuracy"], ".1f"),
            _range(row, "accuracy"),
            _change(row) if row["condition"] != "none" else "",
            number(row["loss_nats"], ".3f"),
            number(100 * row["chance"], ".1f"),
        ]
        for row in rows[:MOST_SHOWN]
    ]
    title = "accuracy of the first token of the answer, in % (95 % intervals; changes are paired)"
    print_grid(title, ["task, condition", "right", "from, to", "change", "loss (nats)", "an item at random"], cells)
    if len(rows) > MOST_SHOWN:
        typer.echo(f"and {len(rows) - MOST_SHOWN} more rows, in tables/copying.parquet")
    if "heads" in tables:
        _print_heads(tables["heads"])


def _range(row: dict[str, Any], name: str) -> str:
    low, high = number(100 * row[f"{name}_low"], ".1f"), number(100 * row[f"{name}_high"], ".1f")
    return f"{low} to {high}" if low else ""


def _change(row: dict[str, Any]) -> str:
    interval = _range(row, "accuracy_change")
    return f"{number(100 * row['accuracy_change'], '+.1f')} ({interval})" if interval else ""


def _print_heads(heads: Any) -> None:
    found = heads[heads["is_induction"]].sort_values("induction", ascending=False)
    if found.empty:
        typer.echo("no induction head")
        return
    tasks = [
        name.removesuffix("_sd") for name in heads.columns if name.startswith("attention_") and name.endswith("_sd")
    ]
    cells = [
        [
            f"{row['layer']}:{row['head']}",
            *(number(row[name], ".3f") for name in ("induction", "induction_null", "previous_token", *tasks)),
        ]
        for row in found.head(MOST_SHOWN).to_dict("records")
    ]
    headings = [f"to the answer, {task.removeprefix('attention_')}" for task in tasks]
    columns = ["layer:head", "induction", "null", "previous", *headings]
    print_grid(f"induction heads ({len(found)} of {len(heads)} heads)", columns, cells)
