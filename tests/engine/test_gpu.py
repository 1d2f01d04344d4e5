"""The same sweep on a GPU: the same numbers, up to the rounding of other kernels."""

import numpy as np
import pytest
import torch

from lesion.anatomy import adopt
from lesion.studies.layers import INTERVENTIONS, ask, measure
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
