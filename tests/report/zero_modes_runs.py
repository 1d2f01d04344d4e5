"""Runs of the studies of zero modes, on tiny models, and the same runs with other tables."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

import lesion
from lesion.checkpoints.compare import Options
from lesion.results import RunFolder, RunView
from lesion.studies.zero_modes import diff
from lesion.studies.zero_modes.dynamics import dynamics
from lesion.studies.zero_modes.overlap import overlap
from lesion.studies.zero_modes.wanda import wanda
from tests.conftest import SENTENCES
from tests.support import save_tiny_folder

LOOK = ["layer:0/q", "layer:1/k", "layer:1/v", "layer:0/o", "layer:0/gate", "layer:1/down"]
Tables = Mapping[str, Callable[[pd.DataFrame], pd.DataFrame] | None]


def moved(source: Path, target: Path, seed: int, share: float = 0.3) -> Path:
    """A copy in bfloat16 in which all but about `share` of the weights moved by one unit in the last place."""
    shutil.copytree(source, target)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(source / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors.values():
        tensor.view(torch.int16)[torch.rand(tensor.shape, generator=generator) > share] ^= 1
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def make_all(folder: Path) -> dict[str, Path]:
    """A run folder of each study, by its name: a base, three derivatives of it, and masks of each pair."""
    save_tiny_folder(folder / "raw", SENTENCES)
    base = moved(folder / "raw", folder / "base", 0, share=1.0)
    series = [moved(base, folder / f"tuned-{seed}", seed) for seed in (1, 2, 3)]
    masks = [folder / f"pair-{seed}" for seed in (1, 2, 3)]
    for tuned, out in zip(series, masks, strict=True):
        look = LOOK if out == masks[0] else []
        diff(str(base), str(tuned), options=Options(ulps=50), look=look, out=out)
    overlap(masks, out=folder / "overlap")
    dynamics([str(base), *map(str, series)], out=folder / "dynamics")
    text = folder / "text.txt"
    text.write_text("\n".join(SENTENCES))
    wanda(series[0], masks[0], str(text), reading=lesion.Reading(tokens=300, context=16), out=folder / "wanda")
    return {"diff": masks[0], "overlap": folder / "overlap", "dynamics": folder / "dynamics", "wanda": folder / "wanda"}


def rewritten(run: Path, target: Path, tables: Tables | None = None, **manifest: Any) -> Path:
    """The same run with some tables changed, or left out where None is given, and other fields of the manifest."""
    view, changes = RunView.open(run), tables or {}
    own = ("schema", "identity", "status", "started", "finished", "plan", "tables", "arrays", "shards", "reason")
    fields = {key: value for key, value in view.manifest.items() if key not in own}
    warned = {"warnings": fields.pop("warnings", [])}
    with RunFolder.open(target, identity={"copy": True}, manifest=fields | warned | manifest) as folder:
        for name in view.tables:
            change = changes.get(name, lambda table: table)
            if change is not None:
                folder.write_table(name, change(view.table(name)))
        if "pictures" in view.manifest["arrays"]:
            folder.write_arrays("pictures", view.arrays("pictures"))
        folder.finish("complete")
    return target
