"""Edits of weights as data: the grammar, what it refuses, and which blocks an edit reaches."""

import os
from pathlib import Path

import pytest

from lesion.engine import lay_out
from lesion.engine.executors.job import _written
from lesion.errors import InputError, InterventionError
from lesion.interventions import OUTSIDE, WeightEdit, combine, drop, parse, set_weights

HERE = os.path.abspath("runs/diff")  # noqa: PTH100


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("zero-modes:runs/diff", WeightEdit(HERE, "zero_modes")),
        ("zero-modes:runs/diff@layer:3", WeightEdit(HERE, "zero_modes", "layer:3")),
        ("complement:runs/diff@layer:1/gate;mean", WeightEdit(HERE, "complement", "layer:1/gate", "mean")),
        ("keep-only:runs/diff@head:1:2", WeightEdit(HERE, "keep_only", "head:1:2")),
        ("random:runs/diff#3", WeightEdit(HERE, "random", seed=3)),
        ("random:runs/diff@group:QK#12;disjoint", WeightEdit(HERE, "random", "group:QK", "zero", 12, disjoint=True)),
        ("random-matched:runs/diff@all#0;mean;disjoint", WeightEdit(HERE, "random_matched", "all", "mean", 0, True)),
        (
            "zero-modes:runs/diff;include=norm,bias",
            WeightEdit(HERE, "zero_modes", include=("bias", "norm")),
        ),
    ],
)
def test_what_is_written_is_what_is_read(text: str, edit: WeightEdit) -> None:
    found = parse(text)
    assert found.weights == (edit,)
    assert found.name == edit.name
    assert parse(found.name).weights == (edit,)
    assert parse(found.name).name == found.name
    named = set_weights(
        "runs/diff",
        edit.kind,
        edit.scope,
        value=edit.value,
        seed=edit.seed,
        disjoint=edit.disjoint,
        include=edit.include,
    )
    assert named.weights == (edit,)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("zero-modes:", InterventionError, "names no masks"),
        ("zero-modes:@layer:3", InterventionError, "names no masks"),
        ("zero-modes:runs/diff@layr:3", InterventionError, "is no scope"),
        ("zero-modes:runs/diff@all#1", InputError, "leave out a seed"),
        ("random:runs/diff@all", InputError, "needs a seed"),
        ("complement:runs/diff;disjoint", InputError, "leave out --disjoint"),
        ("keep-only:runs/diff;mean", InputError, "name the kind complement"),
        ("zero-modes:runs/diff;include=embde", InterventionError, "cannot be included"),
        ("zero_modes:runs/diff", InterventionError, "not an edit that is known"),
    ],
)
def test_refusals(text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        parse(text)


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "a@layer:3#1+b"
    odd.mkdir()
    assert parse(f"zero-modes:{odd.name}").weights[0] == WeightEdit(str(odd), "zero_modes")
    edit = parse(f"random:{odd.name}@layer:0#2").weights[0]
    assert (edit.masks, edit.scope, edit.seed) == (str(odd), "layer:0", 2)
    both = combine([drop(1), parse(f"random:{odd.name}@layer:0#2"), drop(2)])
    again = _written(both.name)
    assert (again.weights, again.layers, again.name) == (both.weights, (1, 2), both.name)


def test_which_blocks_an_edit_reaches() -> None:
    everywhere = WeightEdit(HERE, "zero_modes", "component:gate")
    some = WeightEdit(HERE, "zero_modes", "layers:1-2", include=("norm",))
    outside = WeightEdit(HERE, "zero_modes", include=("embed",))
    assert [everywhere.touches(layer) for layer in (OUTSIDE, 0, 3)] == [False, True, True]
    assert [some.touches(layer) for layer in (OUTSIDE, 0, 1, 2, 3)] == [False, False, True, True, False]
    assert [outside.touches(layer) for layer in (OUTSIDE, 0)] == [True, True]


def test_lanes_fork_where_their_weights_differ() -> None:
    edits = [parse(f"zero-modes:runs/diff@{scope}") for scope in ("layer:2", "layers:1-3", "component:o")]
    assert [lane.fork for lane in lay_out(edits, 4)] == [4, 2, 1, 0]
    base = parse("zero-modes:runs/diff@layer:1")
    lanes = lay_out([*edits, base], 4, base=base)
    assert [lane.fork for lane in lanes] == [4, 2, 1, 0, 1]
    assert [len(lane.weights_at(1)) for lane in lanes] == [1, 1, 2, 2, 2]
    with_dropped = lay_out([parse("zero-modes:runs/diff@layer:1")], 4, base=drop(1))
    assert with_dropped[1].fork == 4  # a block that is not there has no weights to set
