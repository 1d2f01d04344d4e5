"""Names and digests depend on what was asked, not on how it was written down."""

from pathlib import Path

import numpy as np
import pytest

from lesion.results import canonical_json, digest, run_name
from lesion.results.canonical import differences


def test_order_and_types_do_not_matter_values_do() -> None:
    one = {"b": (1, 2), "a": {"x": np.float64(0.5), "p": Path("/t")}}
    two = {"a": {"p": "/t", "x": 0.5}, "b": [1, 2]}
    assert digest(one) == digest(two)
    assert digest(one) != digest({**two, "b": [2, 1]})


def test_nan_and_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": float("nan")})
    with pytest.raises(TypeError, match="not JSON: set"):
        canonical_json({"a": {1}})


def test_run_name_is_stable_and_safe() -> None:
    assert run_name("layers", "openai-community/gpt2", {"seed": 0}) == "layers-gpt2-bd048884"
    assert run_name("layers", "gpt2", {"seed": 1}) != run_name("layers", "gpt2", {"seed": 0})
    assert run_name("layers", "/home/me/models/base/", {}) == run_name("layers", "base", {})
    assert run_name("layers", "C:\\models\\base", {}) == run_name("layers", "base", {})
    hostile = run_name("layers", "../../etc/<script>$x$ \n", {})
    assert hostile.startswith("layers-script-x-")
    assert "/" not in hostile
    assert run_name("layers", "模型", {}).startswith("layers-model-")
    assert run_name("layers", "../..", {}).startswith("layers-model-")
    assert len(run_name("layers", "m" * 5000, {})) < 100


def test_differences_name_the_leaf() -> None:
    old = {"arguments": {"context": 256, "bos": "auto"}, "model": "a"}
    new = {"arguments": {"context": 512, "bos": "auto"}, "model": "a", "seed": 1}
    assert differences(old, new) == ["arguments.context: 256 → 512", "seed: (absent) → 1"]
    assert differences(old, old) == []


def test_fingerprints_are_told_apart_by_their_beginning() -> None:
    assert differences({"model": "ab" * 32}, {"model": "cd" * 32}) == ["model: abababababab… → cdcdcdcdcdcd…"]
    assert differences({"model": "ab" * 31}, {"model": "x"}) == [f'model: "{"ab" * 28}… → "x"']
