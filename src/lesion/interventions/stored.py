"""Edits of weights written down: a checkpoint with several of them, each on top of the one before."""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lesion.checkpoints.edited import Applied, apply, refuse_out
from lesion.checkpoints.masks import Masks
from lesion.interventions.weights import WeightEdit


def apply_all(target: Path, edits: Sequence[WeightEdit], out: Path) -> list[Applied]:
    """Writes `target` with all edits to the folder `out`; errors are those of `lesion.checkpoints.edited.apply`.

    Magnitude-matched weights match those of `target` itself, whatever was set before: as lanes and context managers do.
    """
    refuse_out(target, out)
    original = target
    done: list[Applied] = []
    with contextlib.ExitStack() as stack:
        for number, edit in enumerate(edits, start=1):
            here = out
            if number < len(edits):  # beside `out`, on the same disk
                out.parent.mkdir(parents=True, exist_ok=True)
                partial = stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{out.name[:40]}.", dir=out.parent))
                here = Path(partial) / "edited"
            masks = Masks.load(edit.masks)
            done.append(
                apply(
                    target,
                    masks,
                    edit.kind,
                    edit.scope,
                    here,
                    value=edit.value,
                    seed=edit.seed,
                    disjoint=edit.disjoint,
                    include=edit.include,
                    drawn_from=original if target != original else None,
                )
            )
            target = here
    return done
