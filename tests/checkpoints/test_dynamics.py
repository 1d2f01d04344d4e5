"""Series of checkpoints: weights that are moved and moved back by hand, against loops in plain Python."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lesion.checkpoints import dynamics as following
from lesion.checkpoints.compare import Options, compare
from lesion.checkpoints.dynamics import dynamics
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.opened import Checkpoint, Stored, open_checkpoint
from lesion.errors import InputError, LesionError, ModelError
from tests.checkpoints.pairs import as_bits, random_tensors, tuned_from, with_specials, write

GATE = "model.layers.1.mlp.gate_proj.weight"
Series = list[dict[str, Tensor]]


def series_of(seed: int, n_later: int, dtype: torch.dtype = torch.bfloat16) -> Series:
    """Each later checkpoint has about 60 % of the start's weights, drawn anew; zeros of both signs and NaN too."""
    start = random_tensors(seed, dtype)
    later = [tuned_from(start, 100 + number, share=0.6) for number in range(n_later)]
    for one in later:
        with_specials(start, one)
    return [start, *later]


def opened(tmp_path: Path, series: Series) -> list[Checkpoint]:
    return [open_checkpoint(write(tmp_path / f"step-{number}", one)) for number, one in enumerate(series)]


def slow(series: Series, tensor: str) -> list[tuple[int, int, int]]:
    """Zero modes, never changed and came back of each later checkpoint, a weight at a time."""
    paths = list(zip(*(as_bits(one[tensor]).reshape(-1).tolist() for one in series), strict=True))
    counts = []
    for step in range(1, len(series)):
        back = [path for path in paths if path[step] == path[0]]
        never = [path for path in back if all(bits == path[0] for bits in path[: step + 1])]
        counts.append((len(back), len(never), len(back) - len(never)))
    return counts


@pytest.mark.parametrize("chunk", [64, None], ids=["in pieces", "whole"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_counts_are_those_of_a_loop_over_weights(
    dtype: torch.dtype, chunk: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk:
        monkeypatch.setattr(following, "CHUNK", chunk)
    series = series_of(0, 3, dtype)
    found = dynamics(
        opened(tmp_path, series), zero_modes=tmp_path / "zero_modes", never_changed=tmp_path / "never_changed"
    )
    for tensor in series[0]:
        rows = [row for row in found.rows if row.tensor == tensor]
        assert [row.checkpoint for row in rows] == [1, 2, 3]
        assert [(row.n_zero_modes, row.n_never_changed, row.n_came_back) for row in rows] == slow(series, tensor)
        assert {row.n_weights for row in rows} == {series[0][tensor].numel()}
    zero_modes, never = Masks.load(tmp_path / "zero_modes"), Masks.load(tmp_path / "never_changed")
    for tensor in series[0]:
        bits = [as_bits(one[tensor]) for one in series]
        assert torch.equal(zero_modes[tensor], bits[3] == bits[0])
        assert torch.equal(never[tensor], (bits[3] == bits[0]) & (bits[2] == bits[0]) & (bits[1] == bits[0]))
        assert tensor.endswith("norm.weight") or not torch.equal(never[tensor], zero_modes[tensor])
    assert never.metadata["derived"] == "the same bits in all of 4 checkpoints"
    assert "derived" not in zero_modes.metadata
    gate = next(row for row in found.rows if row.tensor == GATE)
    assert (gate.layer, gate.component) == (1, "gate")
    assert found.absent == found.mixed == found.prefixes == ()


def test_planted_paths(tmp_path: Path) -> None:
    """Six weights: still; moved for good; away and back; back and away again; twice away; gone at the end."""
    paths = [(1, 1, 1, 1), (1, 2, 2, 2), (1, 2, 1, 1), (1, 2, 1, 3), (1, 2, 3, 1), (1, 1, 1, 2)]
    series = [{GATE: torch.tensor([[float(path[step]) for path in paths]])} for step in range(4)]
    found = dynamics(opened(tmp_path, series), zero_modes=tmp_path / "z", never_changed=tmp_path / "n")
    counts = [(row.n_zero_modes, row.n_never_changed, row.n_came_back) for row in found.rows]
    assert counts == [(2, 2, 0), (4, 2, 2), (3, 1, 2)]
    assert Masks.load(tmp_path / "z")[GATE].tolist() == [[True, False, True, False, True, False]]
    assert Masks.load(tmp_path / "n")[GATE].tolist() == [[True, False, False, False, False, False]]


def test_bits_decide(tmp_path: Path) -> None:
    """A zero that changes its sign has changed; a NaN with the same bits has not."""
    steps = [[0.0, math.nan, -0.0], [-0.0, math.nan, -0.0], [0.0, math.nan, 0.0]]
    found = dynamics(opened(tmp_path, [{GATE: torch.tensor([step])} for step in steps]))
    assert [(row.n_zero_modes, row.n_never_changed, row.n_came_back) for row in found.rows] == [(2, 2, 0), (2, 1, 1)]


@pytest.mark.parametrize("cast", [None, "bf16"])
@pytest.mark.parametrize(
    "dtypes", [("float32",) * 3, ("bfloat16", "float16", "float16"), ("float32", "bfloat16", "float64")]
)
def test_the_last_checkpoint_is_compared_as_a_pair_is(
    dtypes: tuple[str, ...], cast: str | None, tmp_path: Path
) -> None:
    kinds = [getattr(torch, name) for name in dtypes]
    series = [{name: t.to(kind) for name, t in one.items()} for one, kind in zip(series_of(1, 2), kinds, strict=True)]
    for tensor in series[-1].values():
        if cast:
            tensor.mul_(1.0001)  # what bfloat16 does not show
        elif tensor.dtype == torch.float64:
            tensor.view(-1)[::2] *= 1 + 1e-12  # what float32 would not show
    checkpoints = opened(tmp_path, series)
    found = dynamics(checkpoints, cast=cast, zero_modes=tmp_path / "z", never_changed=tmp_path / "n")
    options = Options(cast="bf16" if cast else None, magnitudes=False)
    pair = compare(checkpoints[0], checkpoints[-1], masks=tmp_path / "pair", options=options)
    last = [row for row in found.rows if row.checkpoint == 2]
    assert [(row.tensor, row.n_zero_modes) for row in last] == [(row.tensor, row.n_zero_modes) for row in pair.rows]
    assert (tmp_path / "z").read_bytes() == (tmp_path / "pair").read_bytes()
    assert (tmp_path / "n").read_bytes() != (tmp_path / "pair").read_bytes()
    assert all(row.n_zero_modes == row.n_never_changed + row.n_came_back for row in found.rows)
    assert any(row.n_came_back for row in last)
    wide = "float64" if "float64" in dtypes else "float32"
    steps = [number for number in (1, 2) if dtypes[number] != dtypes[0]]
    assert [found[0] for found in found.mixed] == steps
    assert all(kind in ("bfloat16" if cast else ("float32", wide)) for *_, kind in found.mixed)


def test_every_checkpoint_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "CHUNK", 64)
    series = series_of(0, 4)
    checkpoints = opened(tmp_path, series)
    seen: dict[int, list[int]] = {}
    read = Stored.read

    def counted(self: Stored, start: int, stop: int, *rest: object) -> object:
        seen.setdefault(id(self), []).extend(range(start, stop))
        assert stop - start <= 64
        return read(self, start, stop, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Stored, "read", counted)
    dynamics(checkpoints)
    tensors = [tensor for one in checkpoints for tensor in one.tensors.values()]
    assert {place: sorted(weights) for place, weights in seen.items()} == {
        id(tensor): list(range(math.prod(tensor.shape))) for tensor in tensors
    }


def test_shards_prefixes_and_fused_projections(tmp_path: Path) -> None:
    series = series_of(2, 2)
    plain = dynamics(opened(tmp_path, series))
    front = "layers.0.self_attn"
    other = {name.removeprefix("model."): tensor for name, tensor in series[1].items()}
    parts = [other.pop(f"{front}.{part}_proj.weight") for part in "qkv"]
    other[f"{front}.qkv_proj.weight"] = torch.cat(parts)
    folders = [
        write(tmp_path / "a", series[0], shards=3),
        write(tmp_path / "b", other),
        write(tmp_path / "c", series[2]),
    ]
    found = dynamics([open_checkpoint(folder) for folder in folders])
    assert sorted(found.rows, key=str) == sorted(plain.rows, key=str)
    assert found.absent == ()
    assert found.prefixes == ((1, "model."),)


def test_tensors_that_are_not_everywhere_are_listed(tmp_path: Path) -> None:
    series = series_of(3, 3)
    del series[1][GATE]
    series[2]["model.norm.weight"] = torch.ones(8).bfloat16()
    series[3]["score.weight"] = torch.ones(2, 9).bfloat16()
    del series[3]["model.embed_tokens.weight"]
    found = dynamics(opened(tmp_path, series))
    followed = {row.tensor for row in found.rows}
    assert followed == set(series[0]) - {GATE, "model.norm.weight", "model.embed_tokens.weight"}
    listed = {(row.checkpoint, row.tensor): row for row in found.absent}
    assert set(listed) == {
        (1, GATE),
        (2, "model.norm.weight"),
        *((step, name) for step in range(3) for name in ("score.weight", "model.embed_tokens.weight")),
    }
    assert (listed[1, GATE].shape, listed[1, GATE].shape_last) == (None, (21, 9))
    assert listed[1, GATE].reason == "only in the last"
    assert (listed[2, "model.norm.weight"].shape, listed[2, "model.norm.weight"].reason) == ((8,), "other shape")
    assert listed[0, "model.embed_tokens.weight"].reason == "only in this checkpoint"


def test_no_series(tmp_path: Path) -> None:
    one, two, three = opened(tmp_path, series_of(4, 2))
    with pytest.raises(InputError, match="at least two later checkpoints; 2 given"):
        dynamics([one, two])
    for twice in ([one, two, one], [one, two, two], [one, one, two]):
        with pytest.raises(InputError, match="same files"):
            dynamics(twice)
    copied = open_checkpoint(write(tmp_path / "copy", series_of(4, 2)[1]))
    with pytest.raises(InputError, match="same bytes"):
        dynamics([one, two, copied])
    other = open_checkpoint(write(tmp_path / "other", random_tensors(0), config={"model_type": "bert"}))
    with pytest.raises(InputError, match="of model type"):
        dynamics([one, other, three])
    assert dynamics([one, two, three]).rows


def test_nothing_is_left_of_a_run_that_fails(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, series_of(5, 2))
    masks = tmp_path / "masks"

    def meddle(_: str) -> None:
        (tmp_path / "step-1" / "model.safetensors").touch()

    with pytest.raises(ModelError, match="was changed while it was read"):
        dynamics(checkpoints, zero_modes=masks / "z", never_changed=masks / "n", on_tensor=meddle)
    assert list(masks.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LesionError, match="cannot be written"):
        dynamics(
            opened(tmp_path / "again", series_of(5, 2)), zero_modes=masks / "z", never_changed=tmp_path / "file" / "n"
        )
    assert list(masks.iterdir()) == []
