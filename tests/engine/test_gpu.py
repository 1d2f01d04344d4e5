"""The same sweep on a GPU: the same numbers, up to the rounding of other kernels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lesion.anatomy import adopt
from lesion.engine import Bench, lay_out, make_plan, sweep
from lesion.interventions import set_weights
from lesion.studies.layers import INTERVENTIONS, ask, measure
from tests.contracts.test_weights import random_masks
from tests.support import TINY, Documents, tiny_model, token_documents


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [name for name, (family, _) in TINY.items() if family.objective != "image"])
def test_a_gpu_gives_the_numbers_of_the_cpu(name: str) -> None:
    network = tiny_model(name)
    data = Documents(token_documents(97, [40, 40, 33, 12]), objective=adopt(network, None).anatomy.objective)
    asked = ask(3, INTERVENTIONS, None, [])
    on_cpu = measure(adopt(network, None), data, asked).tables["layers"]
    on_gpu = measure(adopt(network.to("cuda"), None), data, asked).tables["layers"]
    for column in on_cpu.columns.drop(["intervention", "layer"]):
        # float32 without TF32: some 1e-6 on logits of size ten
        np.testing.assert_allclose(on_gpu[column], on_cpu[column], rtol=1e-4, atol=1e-5, err_msg=column)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_weights_are_set_on_a_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    network = tiny_model("llama")
    shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    random_masks(tmp_path / "masks.safetensors", shapes)
    seeds = {"zero_modes": None, "complement": None, "random": 1, "random_matched": 2}
    edits = [set_weights(tmp_path / "masks.safetensors", kind, "layer:1", seed=seed) for kind, seed in seeds.items()]  # type: ignore[arg-type]
    data = Documents(token_documents(97, [40, 40, 33, 12]))
    states = []
    for device in ("cpu", "cuda"):
        anatomy = adopt(network.to(device), None).anatomy
        plan = make_plan(anatomy, [40, 40, 33, 12], len(edits))
        states.append(sweep(Bench(anatomy, data, lay_out(edits, 3), plan)))
    on_cpu, on_gpu = (state.means[0].result().mean.numpy() for state in states)
    assert states[0].n_set == states[1].n_set
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-4, atol=1e-5)
