"""`lesion layers` and `lesion demo`."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lesion.cli.console import TABLE_WIDTH, Output, errors_in_one_line, plus_minus, progress_on, shown
from lesion.cli.options import (
    BadRowOption,
    BatchOption,
    Bos,
    BosOption,
    ContextOption,
    DataOption,
    DebugOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    EditOption,
    ExecutorOption,
    JsonOption,
    MemoryOption,
    OnBadRow,
    OutOption,
    OverwriteOption,
    PackOption,
    PickleOption,
    QuietOption,
    RemoteCodeOption,
    ResumeOption,
    SeedOption,
    StreamOption,
    TokensOption,
    chosen_batch_size,
    chosen_memory,
    ranges,
)


def layers(
    model: Annotated[str, typer.Argument(help="A folder, a hub id (owner/name[@revision]), or zoo:NAME.")],
    interventions: Annotated[str, typer.Option(help="Which, separated by commas.")] = "drop,swap,drop-attn,drop-mlp",
    layers: Annotated[str | None, typer.Option(help="Which layers, as 0,2,5-7.", show_default="all")] = None,
    edit: EditOption = None,
    data: DataOption = None,
    tokens: TokensOption = 100_000,
    context: ContextOption = None,
    bos: BosOption = Bos.auto,
    pack: PackOption = False,
    on_bad_row: BadRowOption = OnBadRow.fail,
    batch_size: BatchOption = "auto",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_pickle: PickleOption = False,
    stream: StreamOption = None,
    max_memory: MemoryOption = None,
    ignore_remote_code: RemoteCodeOption = False,
    executor: ExecutorOption = "here",
    out: OutOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Drop, swap and half-drop every layer, and measure what that does to the prediction."""
    with errors_in_one_line(debug):
        asked = {
            "interventions": [name.strip() for name in interventions.split(",")],
            "layers": None if layers is None else ranges(layers),
            "edits": edit or [],
            "batch_size": chosen_batch_size(batch_size),
            "seed": seed,
        }
        run = _forecast_layers if dry_run else _run_layers
        run(
            model,
            data or ["stdlib"],
            asked,
            {"tokens": tokens, "context": context, "bos": bos.value, "pack": pack, "on_bad_row": on_bad_row.value},
            {
                "device": device,
                "dtype": dtype,
                "allow_pickle": allow_pickle,
                "stream": stream,
                "max_memory": chosen_memory(max_memory),
                "ignore_remote_code": ignore_remote_code,
            },
            executor,
            Output(out, resume, overwrite, quiet, as_json),
        )


def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """The layer sweep on a small trained model and the standard library: no network, about a minute."""
    with errors_in_one_line(debug):
        _run_layers(
            "zoo:python-8l",
            ["code=stdlib:code", "prose=stdlib:prose"],
            {},
            {"tokens": 60_000},
            {},
            "here",
            Output(out, False, overwrite, quiet, as_json),
        )


def _run_layers(
    model: str,
    data: list[str],
    asked: dict[str, Any],
    reading: dict[str, Any],
    loading: dict[str, Any],
    executor: str,
    output: Output,
) -> None:
    from lesion.anatomy import Loading
    from lesion.engine import keep_pages
    from lesion.report import write_report
    from lesion.studies.layers import layers
    from lesion.studies.setting import Reading

    keep_pages()
    with progress_on(output.console) as progress:
        outcome = layers(
            model,
            data,
            **asked,
            reading=Reading(**reading),
            loading=Loading(**loading),
            executor=executor,
            out=output.out or Path("runs"),
            name_folder=output.out is None,
            resume=output.resume,
            overwrite=output.overwrite,
            command=shlex.join(["lesion", *sys.argv[1:]]),
            progress=progress,
        )
    assert outcome.path is not None  # a run folder was asked for
    page = write_report(outcome.path)
    _say(outcome, page, output)


def _forecast_layers(
    model: str,
    data: list[str],
    asked: dict[str, Any],
    reading: dict[str, Any],
    loading: dict[str, Any],
    executor: str,
    output: Output,
) -> None:
    from lesion.anatomy import Loading
    from lesion.engine import keep_pages
    from lesion.studies.layers import forecast_layers, prepare
    from lesion.studies.setting import Reading

    keep_pages()
    prepared = prepare(model, data, **asked, reading=Reading(**reading), loading=Loading(**loading))
    found = forecast_layers(prepared, batch_size=asked["batch_size"], max_memory=loading["max_memory"])
    if output.as_json:
        typer.echo(json.dumps(asdict(found)))
    elif not output.quiet:
        _print_forecast(found, streamed=prepared.model.streamed is not None)


def _print_forecast(found: Any, *, streamed: bool) -> None:
    from rich.table import Table

    from lesion.anatomy.placement import amount

    speeds = f"{found.block_microseconds:.1f} µs a token and block, {found.head_microseconds:.1f} µs a token and head"
    lines = {
        "shards": f"{found.n_shards} of {found.n_batches} batches; a stopped run loses one at most",
        "lanes": f"{found.n_lanes}, the clean one included",
        "tokens": f"{found.n_tokens:,}; {found.token_blocks:,} through a block, {found.token_heads:,} through the head",
        "weights": "in memory",
        "hidden states": amount(found.hidden_bytes),
        "time": f"about {duration(found.seconds)}, at {speeds}, as timed just now",
    }
    if streamed:
        speed = f"at {found.read_megabytes_per_second:,.0f} MB a second"
        lines["weights"] = f"from disk, block by block: {amount(found.weight_bytes_read)} in all, {speed}"
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, text in lines.items():
        shown.add_row(name, text)
    Console(highlight=False, width=max(TABLE_WIDTH, Console().width)).print(shown)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(outcome: Any, page: Path, output: Output) -> None:
    if outcome.resumed_complete:
        output.console.print("This run was complete already; its report was written again.", markup=False)
    for warning in outcome.warnings:
        output.console.print(shown(f"warning: {warning}"), markup=False)
    if output.as_json:
        summary = {
            "run": str(outcome.path),
            "report": str(page),
            "status": "partial" if outcome.partial else "complete",
            "warnings": outcome.warnings,
            "tables": {name: str(outcome.path / "tables" / f"{name}.parquet") for name in outcome.tables},
        }
        typer.echo(json.dumps(summary))
    elif not output.quiet:
        console = Console(highlight=False)
        _print_table(outcome.tables["layers"], Console(highlight=False, width=max(TABLE_WIDTH, console.width)))
        typer.echo(f"report: {page.resolve()}")
    if outcome.partial:
        raise typer.Exit(3)


def _print_table(table: Any, console: Console) -> None:
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    columns = {"layer": "layer", "intervention": "intervention"}
    for heading in columns:
        shown.add_column(heading, justify="right" if heading == "layer" else "left")
    measures = {
        "kl_nats": "KL (nats)",
        "agreement": "agreement",
        "loss_change_nats": "loss change (nats)",
        "entropy_change_bits": "entropy change (bits)",
    }
    for heading in measures.values():
        shown.add_column(heading, justify="right")
    for row in table.sort_values(["intervention", "layer"], kind="stable").to_dict("records"):
        cells = [f"{row[name]:.3f} {plus_minus()} {row[f'{name}_sem']:.3f}" for name in measures]
        shown.add_row(str(row["layer"]), row["intervention"], *cells)
    console.print(shown)
