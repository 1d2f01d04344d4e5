"""What masks share, against Python sets and scipy's hypergeometric distribution, and planted overlaps."""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom
from torch import Tensor

from lesion.checkpoints import overlap as counting
from lesion.checkpoints.masks import Masks, MaskWriter
from lesion.checkpoints.opened import open_checkpoint
from lesion.checkpoints.overlap import PairRow, overlap
from lesion.errors import InputError, ModelError
from tests.checkpoints.pairs import write

SHAPES = {
    "model.embed_tokens.weight": (37, 11),
    "model.layers.0.self_attn.q_proj.weight": (29, 31),
    "model.layers.0.mlp.gate_proj.weight": (0, 5),
    "model.layers.1.mlp.gate_proj.weight": (19, 23),
    "model.norm.weight": (1,),
}
QUERY = "model.layers.0.self_attn.q_proj.weight"
EXACT = 1e-12
"""Relative: float64 sums of at most some hundred terms."""


def masks_of(path: Path, tensors: Mapping[str, Tensor]) -> Masks:
    with MaskWriter(path, {name: tuple(mask.shape) for name, mask in tensors.items()}, {}) as writer:
        for name, mask in tensors.items():
            writer.write(name, np.packbits(mask.numpy().reshape(-1), bitorder="little"))
    return Masks.load(path)


def random_masks(seed: int, share: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < share for name, shape in SHAPES.items()}


def random_weights(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of all sizes: zeros of both signs, numbers too small for an exponent of their own, infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    special = [0.0, -0.0, torch.finfo(dtype).smallest_normal / 2, math.inf, -math.inf, math.nan, 1.0, -2.0]
    for tensor in weights.values():
        tensor.view(-1)[: len(special)] = torch.tensor(special, dtype=dtype)[: tensor.numel()]
    return weights


def members(mask: Tensor) -> set[int]:
    return {place for place, is_in in enumerate(mask.reshape(-1).tolist()) if is_in}


def exponent(weight: float, dtype: torch.dtype) -> object:
    """In plain arithmetic: k of 2^k <= |w| < 2^(k+1); one bin for what is below all exponents, one for infinity."""
    if not math.isfinite(weight):
        return "not finite"
    if abs(weight) < torch.finfo(dtype).smallest_normal:
        return "smallest"
    return math.frexp(weight)[1]


def expected(total: int, n_a: int, n_b: int) -> tuple[float, float]:
    """Mean and variance of the overlap by scipy."""
    if not total:
        return 0.0, 0.0
    with np.errstate(divide="ignore", invalid="ignore"):  # of its fourth moment, which is not asked for
        mean, variance = hypergeom.stats(total, n_a, n_b, moments="mv")
    return float(mean), (float(variance) if total > 1 else 0.0)


def slow_row(one: Tensor, other: Tensor, weight: Tensor) -> dict[str, float]:
    a, b = members(one), members(other)
    bins = [exponent(value, weight.dtype) for value in weight.reshape(-1).double().tolist()]
    of_all, of_a, of_b = Counter(bins), Counter(bins[i] for i in a), Counter(bins[i] for i in b)
    by_bin = [expected(of_all[key], of_a[key], of_b[key]) for key in of_all]
    mean, variance = expected(one.numel(), len(a), len(b))
    return {
        "n_weights": one.numel(),
        "n_a": len(a),
        "n_b": len(b),
        "n_both": len(a & b),
        "n_either": len(a | b),
        "n_both_by_chance": mean,
        "variance": variance,
        "n_both_by_chance_in_exponents": sum(mean for mean, _ in by_bin),
        "variance_in_exponents": sum(variance for _, variance in by_bin),
    }


@pytest.fixture(params=[(64, 128, 2), None], ids=["in pieces", "whole"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(counting, "SERIAL", request.param[0])
        monkeypatch.setattr(counting, "STRETCH", request.param[1])
        monkeypatch.setattr(counting, "AT_ONCE", request.param[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_count_is_that_of_python_sets(dtype: torch.dtype, pieces: None, tmp_path: Path) -> None:
    weights = random_weights(0, dtype)
    base = open_checkpoint(write(tmp_path / "base", weights))
    masks = {name: random_masks(seed, share) for seed, (name, share) in enumerate([("x", 0.3), ("y", 0.5), ("z", 0.9)])}
    found = overlap({name: masks_of(tmp_path / name, own) for name, own in masks.items()}, weights=base)
    rows = {(row.a, row.b, row.tensor): row for row in found.pairs}
    assert list(rows) == [(a, b, tensor) for a, b in combinations("xyz", 2) for tensor in SHAPES]
    for (a, b, tensor), row in rows.items():
        for column, value in slow_row(masks[a][tensor], masks[b][tensor], weights[tensor]).items():
            assert getattr(row, column) == pytest.approx(value, rel=EXACT, abs=0), (tensor, column)
    together = {row.tensor: row for row in found.together}
    for tensor, shape in SHAPES.items():
        sets, n = [members(own[tensor]) for own in masks.values()], math.prod(shape)
        row = together[tensor]
        assert (row.n_masks, row.n_weights) == (3, n)
        assert row.n_in_all == len(set.intersection(*sets))
        assert row.n_in_any == len(set.union(*sets))
        shares = [len(one) / n if n else 0.0 for one in sets]
        assert row.n_in_all_by_chance == pytest.approx(n * math.prod(shares), rel=EXACT)
        assert row.n_in_any_by_chance == pytest.approx(n * (1 - math.prod(1 - p for p in shares)), rel=EXACT)
        bins = [exponent(value, dtype) for value in weights[tensor].reshape(-1).double().tolist()]
        by_bin = [
            size * math.prod(sum(bins[i] == key for i in one) / size for one in sets)
            for key, size in Counter(bins).items()
        ]
        assert row.n_in_all_by_chance_in_exponents == pytest.approx(sum(by_bin), rel=EXACT)
    assert {row.layer for row in found.pairs} == {None, 0, 1}
    assert rows["x", "y", QUERY].component == "q"
    assert found.uncompared == found.without_weights == ()


def one_tensor(tmp_path: Path, masks: Mapping[str, Tensor], weight: Tensor) -> dict[tuple[str, str], PairRow]:
    base = open_checkpoint(write(tmp_path / "base", {QUERY: weight}))
    made = {name: masks_of(tmp_path / name, {QUERY: mask}) for name, mask in masks.items()}
    return {(row.a, row.b): row for row in overlap(made, weights=base).pairs}


def test_what_only_depends_on_the_exponent_is_told_from_what_is_shared(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(400, 500, generator=generator).bfloat16()
    large = torch.frexp(weight.float().abs())[1].clamp(-6, 2)
    by_exponent = 0.5 * 2.0 ** (large - 2)  # ones between 0.002 and 0.5, as large weights are the ones that stay

    def drawn(chance: Tensor | float) -> Tensor:
        return torch.rand(weight.shape, generator=generator) < chance

    common = drawn(0.05)
    masks = {
        "plain": drawn(0.2),
        "plain too": drawn(0.3),
        "large": drawn(by_exponent),
        "large too": drawn(by_exponent),
        "sharing": drawn(by_exponent) | common,
        "sharing too": drawn(by_exponent) | common,
    }
    rows = one_tensor(tmp_path, masks, weight)

    def off(row: PairRow, by_chance: float, variance: float) -> float:
        return (row.n_both - by_chance) / math.sqrt(variance)

    independent, alike, sharing = (
        rows[pair] for pair in [("plain", "plain too"), ("large", "large too"), ("sharing", "sharing too")]
    )
    # five standard deviations: of a million seeds one would fail
    assert abs(off(independent, independent.n_both_by_chance, independent.variance)) < 5
    assert off(alike, alike.n_both_by_chance, alike.variance) > 20
    assert alike.n_both / alike.n_both_by_chance > 1.2
    assert abs(off(alike, alike.n_both_by_chance_in_exponents, alike.variance_in_exponents)) < 5
    assert off(sharing, sharing.n_both_by_chance_in_exponents, sharing.variance_in_exponents) > 20
    row = rows["plain", "large"]
    assert abs(off(row, row.n_both_by_chance, row.variance)) < 5


def test_variances_are_those_of_draws(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    mean, variance = counting.by_chance(*(np.array([number]) for number in (50, 20, 15)))
    drawn = [len(set(generator.permutation(50)[:15]) & set(range(20))) for _ in range(20_000)]
    assert float(mean[0]) == pytest.approx(6.0, rel=EXACT)
    assert np.mean(drawn) == pytest.approx(float(mean[0]), abs=5 * math.sqrt(float(variance[0]) / 20_000))
    # the variance of a sample of 20,000 is off by a hundredth, as sqrt(2 / 20,000)
    assert np.var(drawn) == pytest.approx(float(variance[0]), rel=0.05)


def test_copies_and_complements(tmp_path: Path) -> None:
    mask = torch.rand(13, 17, generator=torch.Generator().manual_seed(0)) < 0.4
    n = int(mask.sum())
    rows = one_tensor(tmp_path, {"one": mask, "copy": mask, "rest": ~mask}, torch.randn(13, 17))
    assert (rows["one", "copy"].n_both, rows["one", "copy"].n_either) == (n, n)
    assert (rows["one", "rest"].n_both, rows["one", "rest"].n_either) == (0, mask.numel())


def test_weights_are_rounded_where_the_masks_were(tmp_path: Path) -> None:
    """1.9999 is in the bin of 1 as stored, and is 2 in bfloat16."""
    weight = torch.tensor([[1.9999, 1.9999, 2.0, 2.0]])
    mask = {QUERY: torch.tensor([[True, True, False, False]])}
    made = {name: masks_of(tmp_path / name, mask) for name in "ab"}
    base = open_checkpoint(write(tmp_path / "base", {QUERY: weight}))
    assert overlap(made, weights=base).pairs[0].n_both_by_chance_in_exponents == 2.0
    assert overlap(made, weights=base, cast="bf16").pairs[0].n_both_by_chance_in_exponents == 1.0


def test_zeros_have_a_bin_of_their_own(tmp_path: Path) -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, 1.5, 1.25, 1.75]])
    masks = {name: torch.tensor([[True, True, False, False, False, False]]) for name in "ab"}
    row = one_tensor(tmp_path, masks, weight)["a", "b"]
    assert row.n_both_by_chance == pytest.approx(4 / 6, rel=EXACT)
    assert row.n_both_by_chance_in_exponents == 2.0
    assert row.variance_in_exponents == 0.0


def test_without_weights_nothing_is_known_of_exponents(tmp_path: Path) -> None:
    made = {name: masks_of(tmp_path / name, random_masks(seed, 0.5)) for seed, name in enumerate("abc")}
    found = overlap(made)
    assert all(math.isnan(row.n_both_by_chance_in_exponents) for row in found.pairs)
    assert all(math.isnan(row.variance_in_exponents) for row in found.pairs)
    assert all(math.isnan(row.n_in_all_by_chance_in_exponents) for row in found.together)
    assert not any(math.isnan(row.n_both_by_chance) for row in found.pairs)
    fewer = {name: tensor for name, tensor in random_weights(0, torch.float32).items() if name != QUERY}
    found = overlap(made, weights=open_checkpoint(write(tmp_path / "fewer", fewer)))
    assert found.without_weights == (QUERY,)
    assert {row.tensor for row in found.pairs if math.isnan(row.n_both_by_chance_in_exponents)} == {QUERY}


def test_names_with_a_prefix_and_tensors_that_do_not_fit(tmp_path: Path) -> None:
    one = random_masks(0, 0.5)
    other = {name.removeprefix("model."): mask for name, mask in one.items()}
    other["layers.1.mlp.gate_proj.weight"] = torch.ones(23, 19, dtype=torch.bool)
    other["score.weight"] = torch.ones(2, dtype=torch.bool)
    found = overlap({"one": masks_of(tmp_path / "one", one), "other": masks_of(tmp_path / "other", other)})
    assert [row.tensor for row in found.pairs] == [name for name in SHAPES if "1.mlp" not in name]
    assert all(row.n_both == row.n_a == row.n_b for row in found.pairs)
    gate, score = found.uncompared
    assert (gate.tensor, gate.shape_a, gate.shape_b) == ("model.layers.1.mlp.gate_proj.weight", (19, 23), (23, 19))
    assert gate.reason == "other shape"
    assert (score.tensor, score.shape_a, score.shape_b, score.reason) == ("score.weight", None, (2,), "only in other")


def test_a_tensor_has_one_name_in_all_pairs(tmp_path: Path) -> None:
    """Two names of one tensor would be counted as two tensors wherever a table's names are."""
    masks = random_masks(0, 0.5)
    short = {name.removeprefix("model."): mask for name, mask in masks.items()}
    extra = {"model.layers.1.mlp.up_proj.weight": torch.ones(3, 2, dtype=torch.bool)}  # not in the first
    given = {
        "short": masks_of(tmp_path / "a", short),
        "one": masks_of(tmp_path / "b", masks | extra),
        "two": masks_of(tmp_path / "c", masks | extra),
    }
    found = overlap(given)
    names = {pair: {row.tensor for row in found.pairs if (row.a, row.b) == pair} for pair in combinations(given, 2)}
    assert names["short", "one"] == names["short", "two"] == set(short)
    assert names["one", "two"] == set(short) | set(extra)
    turned = overlap(dict(reversed(given.items())))
    assert {row.tensor for row in turned.pairs} == set(masks) | set(extra)


def test_weights_stored_apart_or_with_a_prefix_are_found(tmp_path: Path) -> None:
    """Masks of a fused matrix, and a base that stores its parts, whose exponents are all different."""
    front = "layers.0.self_attn"
    parts = {f"model.{front}.{part}_proj.weight": torch.full((2, 4), 2.0**k) for k, part in enumerate("qkv")}
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[2:4] = True  # the rows of k
    norm, norm_mask = torch.ones(4), torch.ones(4, dtype=torch.bool)  # from whose name the prefix is known
    tensors = {f"{front}.qkv_proj.weight": mask, "layers.0.input_layernorm.weight": norm_mask}
    made = {name: masks_of(tmp_path / name, tensors) for name in "ab"}
    base = write(tmp_path / "base", parts | {"model.layers.0.input_layernorm.weight": norm})
    row = overlap(made, weights=open_checkpoint(base)).pairs[0]
    assert row.n_both_by_chance == pytest.approx(64 / 24, rel=EXACT)
    assert row.n_both_by_chance_in_exponents == 8.0


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = masks_of(tmp_path / "one", random_masks(0, 0.5))
    far = masks_of(tmp_path / "far", {"h.0.mlp.c_fc.weight": torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(InputError, match="two or more masks; 1 given"):
        overlap({"one": one})
    with pytest.raises(InputError, match=r"one and far have no tensor .* in common \(5 and 1 tensors\)"):
        overlap({"one": one, "far": far})
    base = open_checkpoint(write(tmp_path / "base", {"h.0.mlp.c_proj.weight": torch.ones(7, 7)}))
    with pytest.raises(InputError, match="the masks are not of one architecture"):
        overlap({"one": one, "same": masks_of(tmp_path / "same", random_masks(1, 0.5))}, weights=base)


def test_weights_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    weights = random_weights(0, torch.float32)
    made = {name: masks_of(tmp_path / name, random_masks(seed, 0.5)) for seed, name in enumerate("ab")}
    base = open_checkpoint(write(tmp_path / "base", weights))

    def meddle(_: str) -> None:
        (tmp_path / "base" / "model.safetensors").touch()

    assert overlap(made, weights=base).pairs
    with pytest.raises(ModelError, match="was changed while it was read"):
        overlap(made, weights=base, on_tensor=meddle)


def test_every_tensor_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    made = {name: masks_of(tmp_path / name, random_masks(seed, 0.5)) for seed, name in enumerate("ab")}
    overlap(made, on_tensor=told.append)
    assert told == list(SHAPES)
