"""Loading a model for study: nothing is guessed, re-initialised or converted in silence."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from lesion.anatomy import files
from lesion.anatomy.anatomy import Anatomy, dissect
from lesion.anatomy.family import NOT_STUDIED, Family, known_families
from lesion.anatomy.packing import keep_float32, say_once
from lesion.anatomy.placement import fits
from lesion.anatomy.plausible import refuse_implausible, refuse_oversized, shapes_of
from lesion.anatomy.source import resolve
from lesion.anatomy.streaming import StreamedBlocks, open_streamed, refuse_non_finite
from lesion.anatomy.wording import first_line, quiet_transformers, some
from lesion.errors import InputError, LesionError, ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REFUSALS = (
    *(OSError, EOFError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError),
    *(ArithmeticError, AssertionError),
)
"""What transformers raises for files that it cannot use, depending on which line of it meets them first."""


@dataclass(frozen=True)
class Loading:
    """How a model is loaded: the arguments of `load`, for those who load it later, or elsewhere."""

    device: str = "auto"
    dtype: str = "auto"
    allow_pickle: bool = False
    stream: bool | None = None
    max_memory: int | None = None
    ignore_remote_code: bool = False


@dataclass(frozen=True)
class Model:
    """A loaded model and what is needed to say later which one it was.

    Attributes:
        name: as the user gave it.
        anatomy: its parts; `anatomy.model` is the plain `PreTrainedModel`.
        tokenizer: of the model's folder, or None for image models.
        stored_fingerprint: of configuration and weights (`files.fingerprint`); None for a model passed in memory.
        image_processor: of an image model's folder, where it has one.
        streamed: the blocks, where their weights come from disk one at a time; None where they are in memory.
    """

    name: str
    anatomy: Anatomy
    tokenizer: Any
    stored_fingerprint: str | None
    image_processor: Any = None
    streamed: StreamedBlocks | None = None

    @property
    def fingerprint(self) -> str:
        """What the model is now: another one, or the same with other weights, has another."""
        return self.stored_fingerprint or files.fingerprint_in_memory(self.anatomy.model)

    def describe(self) -> dict[str, Any]:
        """The facts for a run's manifest."""
        a = self.anatomy
        return {
            "name": self.name,
            "family": a.family.model_type,
            "architecture": type(a.model).__name__,
            "objective": a.objective,
            "n_layers": a.n_layers,
            "d_model": a.d_model,
            "d_z": a.d_z,
            "d_mlp": a.d_mlp,
            "n_experts": a.n_experts,
            "n_heads": a.n_heads,
            "n_kv_heads": a.n_kv_heads,
            "n_positions": a.n_positions,
            "vocabulary": a.vocabulary,
            "norm": a.norm,
            "parallel": a.parallel,
            "n_parameters": a.model.num_parameters(),  # type: ignore[operator]
            "packed": a.packed,
            "attention": a.config._attn_implementation,
            "experts": a.config._experts_implementation if a.n_experts > 1 else None,
            "fingerprint": self.fingerprint,
        }


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    stream: bool | None = None,
    max_memory: int | None = None,
    ignore_remote_code: bool = False,
    expects: Callable[[int], None] | None = None,
) -> Model:
    """Loads a model by folder, `zoo:NAME` or hub id, in eval mode, with every weight accounted for.

    Args:
        device: `auto` takes CUDA where there is one.
        dtype: `auto` is float32 on the CPU (exact for every stored format) and the checkpoint's own on a GPU.
        allow_pickle: read `pytorch_model.bin` with `weights_only=True` where there is nothing else.
        stream: leave the blocks' weights on disk, to be read one block at a time; None does so where the model does
            not fit into `max_memory`, or into the device.
        max_memory: bytes that weights and hidden states may take.
        ignore_remote_code: load a model whose configuration names code of its own with transformers' own class;
            that code is never run.
        expects: called with the number of blocks before any weight is read, to refuse what cannot be asked of them.

    Raises:
        ModelError: the model is missing, damaged, unsupported or contradictory, or cannot be streamed.
        InputError: no such device or dtype.
    """
    folder = resolve(str(name), allow_pickle=allow_pickle)
    stored = files.read_config(folder, ignore_remote_code=ignore_remote_code)
    family = known_families().get(stored["model_type"])
    if stored["model_type"] in NOT_STUDIED:
        raise ModelError(f"{name} cannot be studied: {NOT_STUDIED[stored['model_type']]}")
    if family is None:
        raise ModelError(
            f"{name} is of family {stored['model_type']!r}, which is not known; "
            f"known: {', '.join(sorted(known_families()))}"
        )
    packed = "quantization_config" in stored
    weights = files.weight_files(folder, allow_pickle=allow_pickle, packed=packed)
    place, before = _device(device), files.states(weights)
    model, streamed = _build(
        folder,
        stored,
        family,
        weights,
        dtype=_dtype(dtype, place),
        device=place,
        stream=stream,
        max_memory=max_memory,
        expects=expects,
    )
    refuse_non_finite(model, name)
    digest = files.fingerprint(folder, weights)
    if files.states(weights) != before:
        raise ModelError(
            f"the weights in {folder} were changed while they were read; wait until nothing writes to them"
        )
    processor = _image_processor(folder, family)
    return Model(str(name), dissect(model), _tokenizer(folder, family), digest, processor, streamed)


def adopt(model: nn.Module, tokenizer: Any, *, name: str | None = None) -> Model:
    """A model that the user already holds in memory; it stays as it is, and studies run it in eval mode.

    Raises:
        ModelError: its family is not known or contradicts its weights.
    """
    return Model(name or getattr(model, "name_or_path", "") or type(model).__name__, dissect(model), tokenizer, None)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name!r} is not a device that can be used; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name} was asked for, but this machine has no usable CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name} was asked for, but this machine has {torch.cuda.device_count()} of them")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in DTYPES:
        raise InputError(f"--dtype {name!r} is not known; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _build(
    folder: Path,
    stored: dict[str, Any],
    family: Family,
    weights: list[Path],
    *,
    dtype: torch.dtype | str,
    device: torch.device,
    stream: bool | None,
    max_memory: int | None,
    expects: Callable[[int], None] | None,
) -> tuple[nn.Module, StreamedBlocks | None]:
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig

    architecture = getattr(transformers, family.architectures[0])
    packed = "quantization_config" in stored
    with quiet_transformers(), _refusals(folder):
        names = CONFIG_MAPPING[family.model_type].attribute_map
        refuse_implausible(folder, stored, names, shapes_of(weights))
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if reason := family.refuse(config):
            raise ModelError(f"{folder} cannot be studied: {reason}")
        if expects:
            expects(int(config.num_hidden_layers))
        refuse_oversized(folder, architecture, config, weights)
        computed = _computed_dtype(dtype, config)
        if _is_streamed(folder, weights, computed, device, packed=packed, stream=stream, max_memory=max_memory):
            return open_streamed(architecture, config, family, weights, dtype=computed, device=device)
        model, info = architecture.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=family.attention,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **({"device_map": {"": device}, "disable_mmap": True} if packed else {}),
        )
    _refuse_loose_ends(folder, family, info)
    if packed:
        keep_float32(model)
        say_once()
    elif device.type == "cpu":
        _own(model)
    else:
        model = model.to(device)
    return model.eval(), None


def _computed_dtype(dtype: torch.dtype | str, config: Any) -> torch.dtype:
    """The type to compute in: the one asked for, or the checkpoint's own."""
    if isinstance(dtype, torch.dtype):
        return dtype
    own = config.dtype
    return own if isinstance(own, torch.dtype) else torch.float32


def _is_streamed(
    folder: Path,
    weights: list[Path],
    dtype: torch.dtype,
    device: torch.device,
    *,
    packed: bool,
    stream: bool | None,
    max_memory: int | None,
) -> bool:
    """Whether blocks stay on disk: because it was asked for, or because the model has no room."""
    if stream is False:
        return False
    reason = "they are packed" if packed else "they are pickled" if weights[0].suffix != ".safetensors" else None
    if reason is None:
        need = sum(math.prod(shape) for shape in shapes_of(weights).values()) * dtype.itemsize
        return stream or not fits(need, device, max_memory)
    if stream:
        raise ModelError(f"the weights in {folder} cannot be read block by block: {reason}; leave --stream out")
    return False


@contextlib.contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """Says in one line what transformers says in many, and in many ways."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except LesionError:
        raise
    except SafetensorError as error:
        raise ModelError(f"the weights in {folder} are damaged: {error}") from None
    except UnpicklingError:
        raise ModelError(f"{folder} pickles more than tensors, which would run code; it was not opened") from None
    except (*REFUSALS, StrictDataclassError) as error:
        raise ModelError(f"transformers cannot load {folder}: {first_line(error)}") from error


def _own(model: nn.Module) -> None:
    """Copies weights, one at a time, out of the file that they are mapped from.

    A file that is overwritten during a run would change the model, and one that is cut off would end the process.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _refuse_loose_ends(folder: Path, family: Family, info: dict[str, Any]) -> None:
    """transformers initialises missing tensors at random and passes over unexpected ones; a study must not."""
    if mismatched := sorted(map(str, info["mismatched_keys"])):
        raise ModelError(f"weights and configuration of {folder} disagree on shapes: {some(mismatched)}")
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder} lacks {len(missing)} tensors that its configuration asks for: {some(missing)}")
    unused = [re.compile(pattern) for pattern in family.unused]
    unexpected = sorted(key for key in info["unexpected_keys"] if not any(pattern.match(key) for pattern in unused))
    if unexpected:
        raise ModelError(
            f"{folder} holds {len(unexpected)} tensors that its configuration has no place for: {some(unexpected)}"
        )


def _tokenizer(folder: Path, family: Family) -> Any:
    if family.objective == "image":
        return None
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise ModelError(f"{folder} has no tokenizer: none of {', '.join(names)} is there")
    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except UnpicklingError:
            raise ModelError(f"{folder} pickles more than tensors, which would run code; it was not opened") from None
        except REFUSALS as error:
            raise ModelError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error


def _image_processor(folder: Path, family: Family) -> Any:
    """How the model's pictures were scaled and normalised when it was trained, where its folder says so."""
    if family.objective != "image" or not (folder / "preprocessor_config.json").is_file():
        return None
    from transformers import AutoImageProcessor

    with quiet_transformers():
        try:
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except REFUSALS as error:
            raise ModelError(f"the image processor in {folder} cannot be loaded: {first_line(error)}") from error
