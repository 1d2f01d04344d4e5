"""A LoRA adapter merged into its base while it is read: each matrix with the bits that peft's own merging gives it.

Only the matrices that the adapter changes are worked out, some rows at a time; everything else is the base's own. No
model is built. (LoRA: Hu et al. 2021, equation 3; DoRA: Liu et al. 2024, equation 5.)
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import math
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lesion.anatomy.files import INDEX, SINGLE, states
from lesion.anatomy.source import resolve
from lesion.anatomy.streaming import FLOATS, StoredTensor, stored_tensors
from lesion.anatomy.wording import first_line, some
from lesion.checkpoints.align import common_part, modern_names, without
from lesion.checkpoints.components import place
from lesion.checkpoints.opened import UNSIGNED, Bits, Checkpoint, Stored, fingerprint, open_checkpoint
from lesion.checkpoints.scopes import read_transformers_config
from lesion.errors import ModelError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
FRONT = "base_model.model."
"""What peft puts in front of the names of the model's own modules."""
BLOCK = 1 << 23
"""Most weights that are merged in one go, where rows can be merged one without the other."""
KEPT = 4
"""Blocks that are kept for the next read: two threads may be in two of them each."""
TRANSPOSED = {"c_attn", "c_proj", "c_fc", "q_attn"}
"""Modules of GPT-2 and its kin whose weights are (in, out)."""
GPT2_KIN = {"gpt2", "openai-gpt", "decision_transformer", "imagegpt"}
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to start an adapter that leave the base's weights alone."""
UNMERGED = {
    "layer_replication": "it repeats layers",
    "target_parameters": "it changes parameters that are no modules of their own",
    "trainable_token_indices": "it holds single tokens' embeddings",
    "lora_bias": "it has biases inside the adapter",
    "use_qalora": "it belongs to packed weights",
    "megatron_config": "it belongs to a model split over devices",
    **dict.fromkeys(
        ("alora_invocation_tokens", "velora_config", "monteclora_config", "use_bdlora", "arrow_config", "kasa_config"),
        "it is a variant of LoRA whose merging is not known here",
    ),
}
"""Fields of a configuration that must be empty, and what they would mean."""

_PART = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)")
_FOREIGN = re.compile(r"lora_|trainable_tokens|token_adapter|prompt_|(^|\.)modules_to_save\.")

Way = Literal["linear", "transposed", "embedding"]


@dataclass(frozen=True)
class Merged(Checkpoint):
    """A base with an adapter merged into it.

    Attributes:
        notes: what is to be said of it, a line each.
        n_own: tensors that are the base's own: nothing in the adapter touches them.
    """

    notes: tuple[str, ...] = ()
    n_own: int = 0


@dataclass(frozen=True)
class _Lora:
    """What an adapter says of one module.

    Attributes:
        module: its name in the model that the adapter was made for.
        a: (rank, in), or (rank, vocabulary) of an embedding.
        b: (out, rank), or (width, rank).
        magnitude: of each output (DoRA), None for plain LoRA.
    """

    module: str
    is_embedding: bool
    a: StoredTensor
    b: StoredTensor
    magnitude: StoredTensor | None


def open_tuned(name: str, base: Checkpoint, *, allow_pickle: bool = False, verify: bool = False) -> Checkpoint:
    """Opens the tuned side of a pair: a checkpoint like any other, or an adapter, which is merged into the base.

    Raises:
        ModelError: what `open_checkpoint` and `open_merged` refuse.
    """
    folder = resolve(name, allow_pickle=allow_pickle)
    if is_adapter(folder):
        return open_merged(folder, base, name=name, verify=verify)
    return open_checkpoint(name, allow_pickle=allow_pickle, verify=verify)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter.

    Raises:
        ModelError: it holds the weights of a model as well.
    """
    if not (folder / CONFIG).is_file():
        return False
    models = [file for file in (SINGLE, INDEX) if (folder / file).is_file()]
    if models and any((folder / file).is_file() for file in (WEIGHTS, PICKLE)):
        raise ModelError(f"{folder} holds an adapter and a model ({models[0]}): which is meant? move one elsewhere")
    return not models


def open_merged(folder: Path, base: Checkpoint, *, name: str | None = None, verify: bool = False) -> Merged:
    """Opens an adapter as the checkpoint that it makes of its base.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        base: what it is merged into, in the types in which that is stored; it must stay as it is meanwhile.
        name: as the adapter was asked for.
        verify: take the fingerprint of every byte of the adapter.

    Returns:
        The base's tensors by the base's names; those that the adapter changes are worked out when they are read.

    Raises:
        ModelError: peft is not installed, another kind of adapter, a damaged one, or one of another model.
    """
    raw = _raw(folder)
    config = _config(folder, raw)
    weights = folder / WEIGHTS
    before = states([folder / CONFIG, weights])
    tensors, changed = _tensors(base, weights, config)
    n_own = len(tensors) - len(changed)
    return Merged(
        name=name or str(folder),
        folder=folder,
        files=(folder / CONFIG, weights),
        tensors=tensors,
        tables=base.tables,
        fingerprint=_fingerprint(base, folder, whole=verify),
        model_type=base.model_type,
        ties=base.ties,
        states=tuple(before),
        notes=tuple(_notes(raw, base, len(tensors), n_own, name or str(folder))),
        n_own=n_own,
    )


def _fingerprint(base: Checkpoint, folder: Path, *, whole: bool) -> str:
    """Of the base and of both files of the adapter."""
    kind, _, content = fingerprint([folder / WEIGHTS], whole=whole).partition(":")
    config = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    return f"{kind}:{hashlib.sha256(f'{base.fingerprint} {config} {content}'.encode()).hexdigest()}"


def _tensors(base: Checkpoint, weights: Path, config: Any) -> tuple[dict[str, Stored], set[str]]:
    """All tensors of the merged checkpoint, and the names of those that are not the base's own."""
    loras, replaced = _parts(weights, config)
    adapted = {f"{module}.weight": lora for module, lora in loras.items()}
    found = _counterparts([*adapted, *replaced], base)
    _refuse_unmatched(weights, base, adapted, replaced, found, config)
    tensors = dict(base.tensors)
    for key, tensor in replaced.items():
        stored = found.get(key, key)
        dtype = tensors[stored].dtype if stored in tensors else tensor.dtype
        tensors[stored] = Stored(stored, dtype, tensor.shape, _Replaced(tensor, dtype))
    shelf = _Shelf()
    for key, lora in adapted.items():
        tensors[found[key]] = _merged(tensors[found[key]], lora, config, base, shelf, weights)
    changed = {found.get(key, key) for key in [*adapted, *replaced]}
    _refuse_tied(base, changed)
    return tensors, changed


def _counterparts(keys: Sequence[str], base: Checkpoint) -> dict[str, str]:
    """The base's own names of tensors that an adapter names, where it has them."""
    modern = modern_names(base.tensors)
    part = common_part(keys, modern)
    known = {without(name, part): stored for name, stored in modern.items()}
    return {key: known[without(key, part)] for key in keys if without(key, part) in known}


# ---------------------------------------------------------------- what the folder holds


def _raw(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("peft_type"), str):
        raise ModelError(f"{path} is not the configuration of an adapter: it names no peft_type")
    if raw["peft_type"] != "LORA":
        raise ModelError(
            f"{folder} is an adapter of peft_type {raw['peft_type']}; only LORA can be merged file by file"
        )
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / PICKLE).is_file()
        raise ModelError(
            f"{folder} holds only a pickled adapter ({PICKLE}); save it as safetensors with a newer peft"
            if pickled
            else f"{folder} lacks {WEIGHTS}, the weights of its adapter"
        )
    return raw


def _config(folder: Path, raw: Mapping[str, Any]) -> Any:
    """The configuration as peft reads it."""
    try:
        peft = _peft()
    except ImportError:
        raise ModelError(
            f"{folder} is a LoRA adapter, and merging it needs peft, which is not installed: pip install 'lesion[lora]'"
        ) from None
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    if unknown := sorted(key for key, value in raw.items() if value and key not in fields):
        raise ModelError(f"{folder / CONFIG} has {some(unknown)}, which this version of peft does not know; upgrade it")
    for field, meaning in UNMERGED.items():
        if raw.get(field):
            raise ModelError(f"{folder} cannot be merged file by file: {meaning} ({field} in {CONFIG})")
    start = raw.get("init_lora_weights", True)
    if start not in HARMLESS_STARTS:
        raise ModelError(
            f"{folder} cannot be merged file by file: init_lora_weights {start!r} changes the base's own weights; "
            "save it converted to plain LoRA (path_initial_model_for_weight_conversion)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a field is new is no matter here: those that count were looked at
            config = peft.LoraConfig(
                **{key: value for key, value in raw.items() if key in fields and key != "peft_type"}
            )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder / CONFIG} cannot be read by peft: {first_line(error)}") from None
    _refuse_numbers(folder, config)
    return config


def _refuse_numbers(folder: Path, config: Any) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        if not isinstance(getattr(config, field) or {}, dict):
            raise ModelError(f"{folder / CONFIG}: {field} is no table of names and numbers")
    for what, value in _numbers(config):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ModelError(f"{folder / CONFIG}: {what} is {value!r}, and not a number above 0")


def _numbers(config: Any) -> Iterable[tuple[str, Any]]:
    yield "r", config.r
    for field in ("rank_pattern", "alpha_pattern"):
        for key, value in (getattr(config, field) or {}).items():
            yield f"{field} of {key}", value


def _parts(weights: Path, config: Any) -> tuple[dict[str, _Lora], dict[str, StoredTensor]]:
    """The modules with a LoRA, and the tensors that replace the base's, by their names in the model.

    Raises:
        ModelError: a damaged file, a name that is not known, or a module of which a part is missing.
    """
    modules: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    for key, tensor in stored_tensors([weights]).items():
        if tensor.dtype not in FLOATS.values():
            raise ModelError(f"{weights} holds {key} as {tensor.dtype}: no floating-point numbers")
        name = key.removeprefix(FRONT).removesuffix(".weight" if key.endswith("magnitude_vector.weight") else "")
        if not key.startswith(FRONT):
            raise ModelError(f"{weights} is not from peft: {key} does not begin with {FRONT}")
        if match := _PART.fullmatch(name):
            modules.setdefault(match[1], {})[match[2].removesuffix(".weight")] = tensor
        elif _FOREIGN.search(name):
            raise ModelError(f"{weights} holds {key}, which cannot be merged file by file")
        else:
            replaced[name.replace(".base_layer.", ".")] = tensor
    if not modules and not replaced:
        raise ModelError(f"{weights} holds no tensors: an adapter that changes nothing")
    return {module: _lora(weights, module, parts, config) for module, parts in modules.items()}, replaced


def _lora(weights: Path, module: str, parts: Mapping[str, StoredTensor], config: Any) -> _Lora:
    is_embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
    wanted = {*names, *(["lora_magnitude_vector"] if config.use_dora else [])}
    if parts.keys() != wanted:
        has, asks = (" and ".join(sorted(these)) for these in (parts, wanted))
        raise ModelError(f"{weights}: {module} has {has}, and {CONFIG} asks for {asks}")
    a, b, magnitude = parts[names[0]], parts[names[1]], parts.get("lora_magnitude_vector")
    rank, _ = _strength(config, module)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise ModelError(f"{weights}: {module} is no matrix ({a.shape} and {b.shape}); convolutions cannot be merged")
    if a.shape[0] != rank or b.shape[1] != rank:
        raise ModelError(f"{weights}: {module} has {a.shape} and {b.shape}, which is not the rank {rank} of {CONFIG}")
    return _Lora(module, is_embedding, a, b, magnitude)


def _strength(config: Any, module: str) -> tuple[int, int | float]:
    """Rank and alpha of a module, by peft's own reading of its patterns."""
    key_of = _peft().utils.other.get_pattern_key
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    try:
        rank: int = ranks.get(key_of(ranks.keys(), module), config.r)
        alpha: int | float = alphas.get(key_of(alphas.keys(), module), config.lora_alpha)
    except re.error as error:
        raise ModelError(f"{CONFIG} has a pattern that is no regular expression: {error}") from None
    return rank, alpha


def _refuse_unmatched(
    weights: Path,
    base: Checkpoint,
    adapted: Iterable[str],
    replaced: Iterable[str],
    found: Mapping[str, str],
    config: Any,
) -> None:
    """A whole module that was saved may be one that the base has not, such as a new head; anything else may not."""
    named = config.modules_to_save or ()
    saved = {named} if isinstance(named, str) else set(named)
    lost = [key for key in adapted if key not in found]
    lost += [key for key in replaced if key not in found and not any(f"{name}." in key for name in saved)]
    if lost:
        tied = " (an unembedding that is tied is not stored)" if any("lm_head" in key for key in lost) else ""
        raise ModelError(f"{weights} is not of {base.name}, which has no {some(list(dict.fromkeys(lost)))}{tied}")


def _refuse_tied(base: Checkpoint, changed: Iterable[str]) -> None:
    """One matrix under two names is merged once by peft, under both; file by file it would be merged under one."""
    embeds, unembeds = ({n for n in base.tensors if place(n).component == kind} for kind in ("embed", "unembed"))
    shapes = {base.tensors[name].shape for name in embeds}
    doubled = {name for name in unembeds if base.tensors[name].shape in shapes}
    if not doubled or not (embeds | doubled) & set(changed) or base.ties is False:
        return
    if base.ties or getattr(read_transformers_config(base.folder), "tie_word_embeddings", False):
        raise ModelError(f"{base.name} ties {some(sorted(doubled))} and stores it as well: merge the adapter with peft")


# ---------------------------------------------------------------- tensors that are worked out


class _Replaced:
    """A tensor of the adapter in the type in which the base stores its own."""

    def __init__(self, tensor: StoredTensor, dtype: torch.dtype) -> None:
        self._tensor, self._dtype = tensor, dtype
        self._size = tensor.dtype.itemsize

    def fill(self, start: int, into: Bits) -> None:
        """Reads and rounds some weights."""
        piece = dataclasses.replace(
            self._tensor,
            shape=(len(into),),
            start=self._tensor.start + start * self._size,
            size=len(into) * self._size,
        )
        np.copyto(into, _bits(piece[...].to(self._dtype)))


class _Shelf:
    """The blocks that were worked out last. One is worked out at a time, so that no more than one needs room."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[str, int], Bits] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int], make: Callable[[], Bits]) -> Bits:
        """A block, made if it is not there."""
        with self._lock:
            if key not in self._blocks:
                while len(self._blocks) >= KEPT:
                    self._blocks.popitem(last=False)
                self._blocks[key] = make()
            self._blocks.move_to_end(key)
            return self._blocks[key]


class _Sum:
    """A matrix of the base with a LoRA merged into it, block by block.

    Rows of a linear layer and of an embedding do not need each other; where they do (a matrix that is stored (in, out);
    DoRA on an embedding, whose norms run over the vocabulary) the whole matrix is one block.
    """

    def __init__(self, base: Stored, lora: _Lora, way: Way, config: Any, shelf: _Shelf) -> None:
        self._base, self._lora, self._way, self._config, self._shelf = base, lora, way, config, shelf
        n_rows, self._width = base.shape
        whole = way == "transposed" or (way == "embedding" and lora.magnitude is not None)
        whole = whole or base.dtype == torch.float64  # whose products were seen to depend on the number of rows
        n_blocks = 1 if whole else max(1, min(n_rows, math.ceil(n_rows * self._width / BLOCK)))
        self._ends = [n_rows * block // n_blocks for block in range(n_blocks + 1)]

    def fill(self, start: int, into: Bits) -> None:
        """Merges what is not on the shelf, and copies."""
        stop = start + len(into)
        for block, (first, last) in enumerate(pairwise(self._ends)):
            low, high = max(start, first * self._width), min(stop, last * self._width)
            if low < high:
                bits = self._shelf.get((self._base.name, block), partial(self._block, first, last))
                into[low - start : high - start] = bits[low - first * self._width : high - first * self._width]

    def _block(self, first: int, last: int) -> Bits:
        bits = self._base.read(first * self._width, last * self._width)
        weight = torch.from_numpy(bits.view(f"i{bits.itemsize}")).view(self._base.dtype).view(-1, self._width)
        a, b = self._lora.a[...], self._lora.b[...]
        magnitude = None if self._lora.magnitude is None else self._lora.magnitude[...]
        if self._way == "embedding":
            a = a[:, first:last]
        elif self._way == "linear":
            b = b[first:last]
            magnitude = None if magnitude is None else magnitude[first:last]
        rank, alpha = _strength(self._config, self._lora.module)
        return _bits(merged(weight, a, b, magnitude, self._way, rank, alpha, use_rslora=self._config.use_rslora))


def merged(
    weight: Float[Tensor, "rows columns"],
    a: Float[Tensor, "rank inputs"],
    b: Float[Tensor, "outputs rank"],
    magnitude: Float[Tensor, "..."] | None,
    way: Way,
    rank: int,
    alpha: int | float,
    *,
    use_rslora: bool = False,
) -> Float[Tensor, "rows columns"]:
    """A weight with a LoRA merged into it by peft: in a module of its own, as `merge_and_unload` does it in a model.

    Args:
        weight: of a linear layer (out, in), of GPT-2's kin (in, out) or of an embedding (vocabulary, width); it may
            be overwritten.
        magnitude: of DoRA, None for plain LoRA.
        way: which of the three the weight is.

    Returns:
        The weight in its own type. Adapters in half precision are widened to float32 first, as peft does on loading.
    """
    peft = _peft()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=use_rslora,
        use_dora=magnitude is not None,
        fan_in_fan_out=way == "transposed",
        target_modules=["held"],
        init_lora_weights=False,
    )
    names = ("lora_embedding_A", "lora_embedding_B") if way == "embedding" else ("lora_A.weight", "lora_B.weight")
    state = {f"held.{name}": part for name, part in zip(names, (a, b), strict=True)}
    if magnitude is not None:
        state["held.lora_magnitude_vector"] = magnitude
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # new modules draw weights, which are replaced
        holder: Any = nn.Module()
        holder.held = _module(weight, way)
        peft.inject_adapter_in_model(config, holder)
        for parameter in holder.parameters():
            if parameter is not holder.held.get_base_layer().weight and parameter.itemsize == 2:
                parameter.data = parameter.data.float()
        left = peft.set_peft_model_state_dict(holder, state)
        assert not left.unexpected_keys, left.unexpected_keys
        holder.held.merge()
        result: Tensor = holder.held.get_base_layer().weight.data
    return result


def _module(weight: Float[Tensor, "rows columns"], way: Way) -> nn.Module:
    """A module of the kind that the model has there, with this weight."""
    from transformers.pytorch_utils import Conv1D

    n_rows, n_columns = weight.shape
    with torch.device("meta"):
        module: nn.Module
        if way == "embedding":
            module = nn.Embedding(n_rows, n_columns)
        elif way == "linear":
            module = nn.Linear(n_columns, n_rows, bias=False)
        else:
            module = Conv1D(n_columns, n_rows)
    module.weight = nn.Parameter(weight, requires_grad=False)
    if way == "transposed":
        module.bias = None  # type: ignore[assignment]
    return module


def _merged(base: Stored, lora: _Lora, config: Any, checkpoint: Checkpoint, shelf: _Shelf, weights: Path) -> Stored:
    """A tensor of the base with a LoRA in it.

    Raises:
        ModelError: the sizes are not those of the adapter.
    """
    made = (lora.a.shape[1], lora.b.shape[0]) if lora.is_embedding else (lora.b.shape[0], lora.a.shape[1])
    way: Way = "embedding" if lora.is_embedding else "linear"
    if not lora.is_embedding and _is_transposed(base, checkpoint, made):
        way, made = "transposed", made[::-1]
    n_outputs = lora.b.shape[0]
    fits = lora.magnitude is None or lora.magnitude.shape == (n_outputs,)
    if base.shape != made or not fits:
        raise ModelError(f"{weights} is not of {checkpoint.name}: {base.name} is {base.shape}, the adapter's is {made}")
    return dataclasses.replace(base, source=_Sum(base, lora, way, config, shelf))


def _is_transposed(base: Stored, checkpoint: Checkpoint, made: tuple[int, ...]) -> bool:
    """Whether a weight is stored (in, out): told from its size, and where it is square from what the family does."""
    if len(set(base.shape)) > 1:
        return base.shape == made[::-1]
    module = base.name.split(".")[-2] if "." in base.name else ""
    if module in TRANSPOSED and checkpoint.model_type is None:
        raise ModelError(
            f"{checkpoint.name} names no model_type, so it cannot be known whether {base.name} is stored (in, out)"
        )
    return module in TRANSPOSED and checkpoint.model_type in GPT2_KIN


def _bits(tensor: Tensor) -> Bits:
    flat = tensor.contiguous().view(-1)
    if not len(flat):
        return np.empty(0, UNSIGNED[tensor.itemsize])
    content: Bits = flat.view(torch.uint8).numpy()
    return content.view(UNSIGNED[tensor.itemsize])


# ---------------------------------------------------------------- what is said


def _notes(raw: Mapping[str, Any], base: Checkpoint, n_tensors: int, n_own: int, name: str) -> Iterable[str]:
    version = importlib.metadata.version("peft")
    yield (
        f"{name} is a LoRA adapter, merged into {base.name} with peft {version}: {n_own} of {n_tensors} tensors are "
        "the base's own, and all their weights are zero modes"
    )
    named, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    repository, _, asked = base.name.partition("@")
    if isinstance(named, str) and named and not _is_the_same(named, repository, base.folder):
        yield f"the adapter names {named} as its base, and was merged into {base.name}"
    elif isinstance(revision, str) and revision and revision not in (asked, base.folder.name):
        yield f"the adapter names revision {revision} of its base, and was merged into {base.name}"


def _is_the_same(named: str, asked: str, folder: Path) -> bool:
    path = Path(named).expanduser()
    return named == asked or (path.is_dir() and path.resolve() == folder.resolve())


@cache
def _peft() -> Any:
    """peft, without what a library of packed weights that it looks for has to say of kernels it has not."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import peft
    finally:
        logger.setLevel(level)
    return peft
