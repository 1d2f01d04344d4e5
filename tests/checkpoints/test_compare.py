"""Zero modes against a slow comparison of what safetensors loads, over types, shards and names."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lesion.checkpoints import compare as module
from lesion.checkpoints.compare import Comparison, Options, TensorRow, compare
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.opened import open_checkpoint
from lesion.errors import InputError, LesionError, ModelError
from tests.checkpoints.pairs import as_bits, random_tensors, slow_row, tuned_from, with_specials, write

EXACT = 1e-12
"""Sums in float64 of a few hundred weights, taken in another order."""
SUMMED = 1e-6
"""Sums in float32 of up to 4096 weights: each adds its rounding, 6e-8, and they cancel for the most part."""
MAGNITUDES = ("mean_abs", "rms", "mean_abs_zero_modes_over_matrix", "share_of_squares")
EVERYTHING = Options(ulps=10**6)


def compared(first: str, second: str, masks: Path | None = None, options: Options = EVERYTHING) -> Comparison:
    return compare(open_checkpoint(first), open_checkpoint(second), masks=masks, options=options)


def agrees(row: TensorRow, base: Tensor, tuned: Tensor) -> bool:
    found = asdict(row)
    expected = slow_row(base, tuned)
    for key, value in expected.items():
        rounds = key in MAGNITUDES and row.compared_as != "float64"
        assert found[key] == pytest.approx(value, rel=SUMMED if rounds else EXACT, abs=0, nan_ok=True), key
    return True


@pytest.mark.parametrize("size", [1e-24, 1e-3, 1e24], ids=["tiny", "usual", "huge"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_squares_that_float32_cannot_hold(size: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """1e-48 is no float32, and neither is 1e48; 5000 weights are more than a stretch, and no whole number of them."""
    base = {"model.layers.0.mlp.up_proj.weight": (torch.randn(100, 50) * size).to(dtype)}
    tuned = {name: torch.where(torch.rand(100, 50) < 0.3, tensor, 1.5 * tensor) for name, tensor in base.items()}
    result = compared(write(tmp_path / "base", base), write(tmp_path / "tuned", tuned))
    row = result.rows[0]
    assert agrees(row, base[row.tensor], tuned[row.tensor])
    assert 0 < row.share_of_squares < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("shards_base", "shards_tuned"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("special", [False, True], ids=["plain", "zeros and NaN"])
def test_every_number_is_that_of_the_slow_comparison(
    dtype: torch.dtype,
    shards_base: int,
    shards_tuned: int,
    special: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With chunks of 16 and jobs of 32 weights, so that every tensor has many of them and a rest."""
    monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(module, "JOB", 32)
    base = random_tensors(0, dtype)
    tuned = tuned_from(base, 1)
    if special:
        with_specials(base, tuned)
    first = write(tmp_path / "base", base, shards=shards_base)
    second = write(tmp_path / "tuned", tuned, shards=shards_tuned)
    seen: list[str] = []
    result = compare(
        open_checkpoint(first),
        open_checkpoint(second),
        masks=tmp_path / "masks.safetensors",
        options=EVERYTHING,
        on_tensor=lambda row: seen.append(row.tensor),
    )
    assert {row.tensor for row in result.rows} == set(base)
    assert seen == [row.tensor for row in result.rows]
    masks = Masks.load(tmp_path / "masks.safetensors")
    for row in result.rows:
        assert agrees(row, base[row.tensor], tuned[row.tensor])
        assert (row.n_nan, row.n_signed_zero, row.n_both_zero) == ((3, 1, 3) if special else (0, 0, 0))
        assert row.dtype_base == row.dtype_tuned == row.compared_as == str(dtype).removeprefix("torch.")
        mask = as_bits(base[row.tensor]) == as_bits(tuned[row.tensor])
        assert torch.equal(masks[row.tensor], mask)
        assert 0 < row.n_zero_modes < row.n_weights
    assert masks.metadata["base"] == result.fingerprint_base != result.fingerprint_tuned == masks.metadata["tuned"]
    assert result.uncompared == ()


def test_planted_zero_modes_are_found_exactly(tmp_path: Path) -> None:
    """Also in tensors longer than a job, whose parts two threads take."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, module.JOB // 2 + 5)
    planted = torch.rand(shape, generator=generator) < 0.2
    base = torch.randint(-(1 << 15), 1 << 15, shape, dtype=torch.int16, generator=generator)
    tuned = torch.where(planted, base, base ^ 1)
    first = write(tmp_path / "base", {"w": base.view(torch.bfloat16), "v": torch.ones(1)})
    second = write(tmp_path / "tuned", {"w": tuned.view(torch.bfloat16), "v": torch.ones(1)})
    result = compared(first, second, tmp_path / "m.safetensors", Options(magnitudes=False))
    masks = Masks.load(tmp_path / "m.safetensors")
    assert torch.equal(masks["w"], planted)
    assert {row.tensor: row.n_zero_modes for row in result.rows} == {"w": int(planted.sum()), "v": 1}


@pytest.mark.parametrize("way", ["bf16-fp16", "fp16-fp32", "fp32-bf16", "fp64-fp32"])
def test_different_types_are_compared_after_exact_widening(way: str, tmp_path: Path) -> None:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
    one, other = (kinds[word] for word in way.split("-"))
    wide = torch.float64 if torch.float64 in (one, other) else torch.float32
    base = {name: tensor.to(one) for name, tensor in random_tensors(0, torch.bfloat16).items()}
    tuned = {name: tensor.to(other) for name, tensor in tuned_from(base, 1).items()}
    result = compared(write(tmp_path / "base", base), write(tmp_path / "tuned", tuned))
    for row in result.rows:
        assert agrees(row, base[row.tensor].to(wide), tuned[row.tensor].to(wide))
        assert (row.dtype_base, row.dtype_tuned, row.compared_as) == tuple(
            str(kind).removeprefix("torch.") for kind in (one, other, wide)
        )
    assert sum(row.n_zero_modes for row in result.rows) > 0


def test_rounding_first_makes_zero_modes_only_where_it_is_asked_for(tmp_path: Path) -> None:
    base = random_tensors(0, torch.float32)
    tuned = {name: tensor * (1 + 2**-11) for name, tensor in base.items()}
    first, second = write(tmp_path / "base", base), write(tmp_path / "tuned", tuned)
    exact, rounded = compared(first, second), compared(first, second, options=Options(cast="bf16", ulps=10**6))
    assert (exact.cast, rounded.cast) == (None, "bf16")
    assert sum(row.n_zero_modes for row in exact.rows) == 0
    assert all(math.isnan(row.mean_abs_zero_modes_over_matrix) for row in exact.rows)
    for row in rounded.rows:
        assert agrees(row, base[row.tensor].bfloat16(), tuned[row.tensor].bfloat16())
        assert (row.dtype_tuned, row.compared_as) == ("float32", "bfloat16")
        assert row.fraction > 0.5


@pytest.mark.parametrize("prefixed", ["base", "tuned"])
@pytest.mark.parametrize("prefix", ["model.", "base_model.model."])
def test_prefixes_that_differ(prefixed: str, prefix: str, tmp_path: Path) -> None:
    base = {name.removeprefix("model."): tensor for name, tensor in random_tensors(0).items()}
    tuned = tuned_from(base, 1)

    def named(tensors: dict[str, Tensor], side: str) -> dict[str, Tensor]:
        return {name if side != prefixed or "lm_head" in name else prefix + name: t for name, t in tensors.items()}

    first = write(tmp_path / "base", named(base, "base"))
    second = write(tmp_path / "tuned", named(tuned, "tuned"))
    result = compared(first, second)
    assert (result.prefix, result.prefixed, result.uncompared) == (prefix, prefixed, ())
    assert {row.tensor for row in result.rows} == set(named(tuned, "tuned"))
    for row in result.rows:
        name = row.tensor.removeprefix(prefix)
        assert agrees(row, base[name], tuned[name])
    same = compared(write(tmp_path / "one", base), write(tmp_path / "two", tuned))
    assert (same.prefix, same.prefixed) == ("", "")


def test_tensors_without_a_counterpart_are_listed(tmp_path: Path) -> None:
    base = random_tensors(0)
    tuned = tuned_from(base, 1)
    tuned["model.embed_tokens.weight"] = torch.cat([tuned["model.embed_tokens.weight"], torch.ones(2, 9).bfloat16()])
    del tuned["lm_head.weight"], base["model.layers.1.mlp.up_proj.weight"]
    tuned["score.weight"] = torch.ones(2, 9)
    base["model.embeddings.position_ids"] = torch.arange(5)
    result = compared(write(tmp_path / "base", base), write(tmp_path / "tuned", tuned))
    assert {(left.tensor, left.shape_base, left.shape_tuned, left.reason) for left in result.uncompared} == {
        ("model.embed_tokens.weight", (13, 9), (15, 9), "other shape"),
        ("lm_head.weight", (13, 9), None, "only in base"),
        ("model.layers.1.mlp.up_proj.weight", None, (21, 9), "only in tuned"),
        ("score.weight", None, (2, 9), "only in tuned"),
        ("model.embeddings.position_ids", (5,), None, "whole numbers"),
    }
    left = {entry.tensor for entry in result.uncompared}
    assert {row.tensor for row in result.rows} == set(tuned) - left


@pytest.mark.parametrize(
    ("ties", "reason"),
    [
        ({}, "only in base: may be tied to the embedding in the other"),
        ({"tie_word_embeddings": True}, "only in base: is tied to the embedding in the other"),
        ({"tie_word_embeddings": False}, "only in base"),
    ],
)
def test_an_unembedding_that_one_side_ties(ties: dict[str, bool], reason: str, tmp_path: Path) -> None:
    base = random_tensors(0)
    tuned = {name: tensor for name, tensor in tuned_from(base, 1).items() if name != "lm_head.weight"}
    second = write(tmp_path / "tuned", tuned, config={"model_type": "llama"} | ties)
    result = compared(write(tmp_path / "base", base), second)
    assert [(left.tensor, left.reason) for left in result.uncompared] == [("lm_head.weight", reason)]


@pytest.mark.parametrize("fused_side", ["base", "tuned"])
def test_fused_projections_are_compared_part_by_part(
    fused_side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(module, "JOB", 32)
    base = random_tensors(0)
    tuned = tuned_from(base, 1)

    def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        made = dict(tensors)
        for layer in range(2):
            front = f"model.layers.{layer}"
            parts = [made.pop(f"{front}.self_attn.{part}_proj.weight") for part in "qkv"]
            made[f"{front}.self_attn.qkv_proj.weight"] = torch.cat(parts)
            halves = [made.pop(f"{front}.mlp.{part}_proj.weight") for part in ("gate", "up")]
            made[f"{front}.mlp.gate_up_proj.weight"] = torch.cat(halves)
        return made

    first = write(tmp_path / "base", fused(base) if fused_side == "base" else base)
    second = write(tmp_path / "tuned", fused(tuned) if fused_side == "tuned" else tuned)
    result = compared(first, second, tmp_path / "m.safetensors")
    expected = (fused(base), fused(tuned)) if fused_side == "tuned" else (base, tuned)
    masks = Masks.load(tmp_path / "m.safetensors")
    assert {row.tensor for row in result.rows} == set(expected[1]) == set(masks.names)
    assert result.uncompared == ()
    for row in result.rows:
        assert agrees(row, *(side[row.tensor] for side in expected))
        assert torch.equal(masks[row.tensor], as_bits(expected[0][row.tensor]) == as_bits(expected[1][row.tensor]))


def test_fused_projections_of_other_sizes_are_listed(tmp_path: Path) -> None:
    base = random_tensors(0)
    tuned = tuned_from(base, 1)
    front = "model.layers.0.self_attn"
    parts = [tuned.pop(f"{front}.{part}_proj.weight") for part in "qkv"]
    tuned[f"{front}.qkv_proj.weight"] = torch.cat([*parts, parts[0]])
    result = compared(write(tmp_path / "base", base), write(tmp_path / "tuned", tuned))
    assert {left.tensor.removeprefix(f"{front}.") for left in result.uncompared} == {
        "qkv_proj.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight",
    }  # fmt: skip


def test_a_sample_of_distances_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    base = {"w": torch.randn(40, 50), "v": torch.ones(3)}
    moved = base["w"] + 1e-3 * torch.randn(40, 50) * (torch.arange(50) > 9)
    tuned = {"w": moved, "v": torch.ones(3)}
    first, second = write(tmp_path / "base", base), write(tmp_path / "tuned", tuned)
    rows = [compared(first, second, options=Options(ulps=99, seed=seed)).rows for seed in (0, 0, 1)]
    [w, again, other] = [next(row for row in found if row.tensor == "w") for found in rows]
    assert w == again
    assert w.ulps_mean != other.ulps_mean
    assert 50 < w.n_ulps < 99  # about four fifths of the sample
    v = next(row for row in rows[0] if row.tensor == "v")
    assert v.n_ulps == 0
    assert math.isnan(v.ulps_median)


def test_one_step_is_one_unit_also_across_zero(tmp_path: Path) -> None:
    tiny = torch.tensor([1], dtype=torch.int16).view(torch.bfloat16)
    base = torch.cat([tiny, torch.tensor([1.0, 1.0]).bfloat16()])
    tuned = torch.cat([-tiny, torch.tensor([1 + 2**-7, 1 - 2**-8]).bfloat16()])
    first, second = write(tmp_path / "a", {"w": base}), write(tmp_path / "b", {"w": tuned})
    result = compared(first, second)
    [row] = result.rows
    assert (row.n_ulps, row.ulps_mean, row.ulps_median, row.share_one_ulp) == (3, 4 / 3, 1.0, 2 / 3)
    assert [(found.ulps_from, found.ulps_to, found.n_ulps) for found in result.ulps] == [(1, 1, 2), (2, 3, 1)]


def test_distances_are_counted_by_powers_of_two(tmp_path: Path) -> None:
    """From -0 to +0 is no distance, and 1, 2, 3, 4, 7, 8 units are; the greatest float64 distance is near 2**64."""
    steps = torch.tensor([0, 1, 2, 3, 4, 7, 8])
    base = torch.cat([torch.tensor([-0.0], dtype=torch.float64), torch.ones(6, dtype=torch.float64)])
    tuned = torch.cat([-base[:1], (base[1:].view(torch.int64) + steps[1:]).view(torch.float64)])
    far = torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)
    first = write(tmp_path / "a", {"w": base, "x": far})
    result = compared(first, write(tmp_path / "b", {"w": tuned, "x": -far}))
    assert [(row.tensor, row.ulps_from, row.ulps_to, row.n_ulps) for row in result.ulps] == [
        ("w", 0, 0, 1), ("w", 1, 1, 1), ("w", 2, 3, 2), ("w", 4, 7, 2), ("w", 8, 15, 1), ("x", 2**63, 2**64 - 1, 1),
    ]  # fmt: skip


def test_magnitudes_that_were_not_asked_for_are_not_there(tmp_path: Path) -> None:
    base = random_tensors(0)
    first, second = write(tmp_path / "a", base), write(tmp_path / "b", tuned_from(base, 1))
    without, given = (compared(first, second, options=Options(magnitudes=found)).rows for found in (False, True))
    for name in ("mean_abs", "rms", "mean_abs_zero_modes_over_matrix", "share_of_squares"):
        assert all(math.isnan(getattr(row, name)) for row in without), name
        assert all(getattr(row, name) > 0 for row in given), name


def test_without_magnitudes_their_columns_are_empty_and_the_counts_stay(tmp_path: Path) -> None:
    base = random_tensors(0)
    first, second = write(tmp_path / "base", base), write(tmp_path / "tuned", tuned_from(base, 1))
    full, fast = compared(first, second), compared(first, second, options=Options(magnitudes=False))
    for one, other in zip(full.rows, fast.rows, strict=True):
        assert (one.tensor, one.n_zero_modes, one.n_both_zero) == (other.tensor, other.n_zero_modes, other.n_both_zero)
        assert not math.isnan(one.share_of_squares)
        assert math.isnan(other.share_of_squares)
        assert math.isnan(other.mean_abs_zero_modes_over_matrix)


def test_a_file_that_changes_meanwhile_is_an_error_and_leaves_no_masks(tmp_path: Path) -> None:
    base = random_tensors(0)
    first, second = write(tmp_path / "base", base), write(tmp_path / "tuned", tuned_from(base, 1))
    one, other = open_checkpoint(first), open_checkpoint(second)
    os.utime(tmp_path / "tuned" / "model.safetensors", ns=(0, 0))
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="was changed while it was read"):
        compare(one, other, masks=tmp_path / "out" / "m.safetensors")
    assert list((tmp_path / "out").iterdir()) == []
    compare(one, open_checkpoint(second), masks=tmp_path / "out" / "m.safetensors")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.safetensors"]


def test_an_error_on_the_way_leaves_no_masks(tmp_path: Path) -> None:
    base = random_tensors(0)
    first, second = write(tmp_path / "base", base), write(tmp_path / "tuned", tuned_from(base, 1))

    def stop(row: TensorRow) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        compare(
            open_checkpoint(first), open_checkpoint(second), masks=tmp_path / "out" / "m.safetensors", on_tensor=stop
        )
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_tensors(0)
    first, second = write(tmp_path / "base", base), write(tmp_path / "tuned", tuned_from(base, 1))
    ordinary = Path.open

    def full(path: Path, mode: str = "r", *rest: object) -> object:
        if path.suffix == ".partial":
            ordinary(path, mode).close()
            return ordinary(Path("/dev/full"), "wb")
        return ordinary(path, mode, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"m\.safetensors cannot be written: No space left"):
        compared(first, second, tmp_path / "out" / "m.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


def test_two_architectures_are_refused_with_numbers(tmp_path: Path) -> None:
    base = random_tensors(0)
    first = write(tmp_path / "base", base)
    other_type = write(tmp_path / "type", tuned_from(base, 1), config={"model_type": "gpt2"})
    with pytest.raises(InputError, match=r"'llama' and .* of 'gpt2'"):
        compared(first, other_type)
    wider = {name: torch.cat([tensor, tensor], -1) for name, tensor in base.items()}
    with pytest.raises(InputError, match="of 19 and 19 tensors only 0 have a counterpart"):
        compared(first, write(tmp_path / "wider", wider))
    unnamed = write(tmp_path / "unnamed", tuned_from(base, 1), config={})
    assert len(compared(first, unnamed).rows) == len(base)


def test_the_same_checkpoint_twice_is_refused(tmp_path: Path) -> None:
    base = random_tensors(0)
    first = write(tmp_path / "base", base)
    copy = write(tmp_path / "copy", base)
    with pytest.raises(InputError, match="are the same files"):
        compared(first, first)
    with pytest.raises(InputError, match="hold the same bytes"):
        compared(first, copy)
    (tmp_path / "linked").mkdir()
    os.link(tmp_path / "base" / "model.safetensors", tmp_path / "linked" / "model.safetensors")
    with pytest.raises(InputError, match="are the same files"):
        compared(first, str(tmp_path / "linked"))


def test_a_single_weight_that_no_sample_sees_is_not_the_same_checkpoint(tmp_path: Path) -> None:
    base = {"w": torch.randn(600, 1000), "v": torch.ones(1)}
    tuned = {"w": base["w"].clone(), "v": torch.ones(1)}
    tuned["w"][300, 500] += 1.0
    first, second = write(tmp_path / "base", base), write(tmp_path / "tuned", tuned)
    result = compared(first, second)
    assert result.fingerprint_base == result.fingerprint_tuned
    assert {row.tensor: row.n_weights - row.n_zero_modes for row in result.rows} == {"w": 1, "v": 0}
    whole = [open_checkpoint(name, verify=True).fingerprint for name in (first, second)]
    assert whole[0] != whole[1]
    assert all(text.startswith("whole:") for text in whole)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_pickles_are_read_where_they_are_allowed(old: bool, tmp_path: Path) -> None:
    base = random_tensors(0, torch.float32)
    tuned = tuned_from(base, 1)
    turned = base["model.layers.0.mlp.down_proj.weight"].T.contiguous().T
    (tmp_path / "base").mkdir()
    torch.save(
        base | {"model.layers.0.mlp.down_proj.weight": turned, "position_ids": torch.arange(3)},
        tmp_path / "base" / "pytorch_model.bin",
        _use_new_zipfile_serialization=not old,
    )
    second = write(tmp_path / "tuned", tuned)
    with pytest.raises(ModelError, match="--allow-pickle"):
        open_checkpoint(str(tmp_path / "base"))
    opened = open_checkpoint(str(tmp_path / "base"), allow_pickle=True)
    result = compare(opened, open_checkpoint(second), options=EVERYTHING)
    assert {row.tensor for row in result.rows} == set(base)
    for row in result.rows:
        assert agrees(row, base[row.tensor], tuned[row.tensor])
    assert [left.tensor for left in result.uncompared] == ["position_ids"]


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_a_pickle_that_holds_more_than_tensors_is_refused_unrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    torch.save({"w": torch.ones(2), "x": Harmful()}, tmp_path / "evil" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read as tensors and nothing else"):
        open_checkpoint(str(tmp_path / "evil"), allow_pickle=True)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.qweight"])
def test_packed_weights_are_refused_by_name(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    packed = write(tmp_path / "packed", random_tensors(0) | {name: torch.ones(2, 2).to(dtype)})
    with pytest.raises(ModelError, match=rf"holds {name.replace('.', '[.]')} as \w+: packed weights"):
        open_checkpoint(packed)
    quantized = write(tmp_path / "q", random_tensors(0), config={"quantization_config": {"bits": 4}})
    with pytest.raises(ModelError, match="quantization_config"):
        open_checkpoint(quantized)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    base = random_tensors(0)
    write(tmp_path / "short", base)
    weights = tmp_path / "short" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(ModelError, match="truncated"):
        open_checkpoint(str(tmp_path / "short"))
    write(tmp_path / "gone", base, shards=3)
    (tmp_path / "gone" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks 1 of 3 weight files"):
        open_checkpoint(str(tmp_path / "gone"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter without its base model"):
        open_checkpoint(str(tmp_path / "adapter"))
    write(tmp_path / "config", base)
    (tmp_path / "config" / "config.json").write_text("{")
    with pytest.raises(LesionError, match="not valid JSON"):
        open_checkpoint(str(tmp_path / "config"))
    (tmp_path / "config" / "config.json").write_text(json.dumps([]))
    with pytest.raises(LesionError, match="holds a list"):
        open_checkpoint(str(tmp_path / "config"))


def test_the_helpers_read_what_was_written(tmp_path: Path) -> None:
    base = random_tensors(0)
    write(tmp_path / "base", base)
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in base.items())
