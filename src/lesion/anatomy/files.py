"""A model folder looked at before anything is loaded: what is there, whether it is whole, and its fingerprint."""

import hashlib
import json
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lesion.anatomy.packing import reason_against, refuse_without_libraries
from lesion.anatomy.wording import some
from lesion.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
HEADER_LIMIT = 25_000_000
"""Longest safetensors header accepted, in bytes: a quarter of a million tensors, read in half a gigabyte."""
LFS_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"(.*)-\d+-of-\d+\.safetensors")
"""A file of a series; what is in front of its number is the same in all of one."""
PACKED_DTYPES = ("I", "U", "BOOL", "F8", "F4")
"""How the dtypes begin in which a weight is packed: numbers that mean nothing without their scales."""


def read_config(folder: Path, *, ignore_remote_code: bool = False) -> dict[str, Any]:
    """The configuration as stored.

    Args:
        ignore_remote_code: accept one that names code of its own, which is passed over: transformers' own class of
            that model type is used.

    Raises:
        ModelError: missing, not JSON, without a model type, one that brings code of its own, or weights elsewhere.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path} names no model_type, so the family cannot be known")
    if "auto_map" in config and not ignore_remote_code:
        raise ModelError(
            f"{path} asks for code of its own (auto_map), and lesion does not run code that comes with a model; "
            f"pass --ignore-remote-code to use transformers' own class of model type {config['model_type']!r} instead"
        )
    if config.get("transformers_weights") is not None:
        raise ModelError(f"{path} names other weights (transformers_weights); keep them in {SINGLE} or {INDEX}")
    if "quantization_config" in config:
        if reason := reason_against(config["quantization_config"]):
            raise ModelError(f"{folder} cannot be studied: {reason}")
        refuse_without_libraries(folder)
    return config


def weight_files(folder: Path, *, allow_pickle: bool, packed: bool = False) -> list[Path]:
    """The files that hold the weights, each checked to be whole.

    Args:
        packed: whether the configuration says how packed weights are to be read.

    Raises:
        ModelError: no weights, files missing from the index, paths that leave the folder, pickles without
            `allow_pickle`, or a damaged file; the message names it.
    """
    if (folder / SINGLE).is_file():  # what transformers takes where both are there
        files = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        files = _indexed(folder)
    elif any((folder / name).is_file() for name in PICKLES):
        if not allow_pickle:
            raise ModelError(
                f"{folder} holds only pickled weights (pytorch_model.bin), which can run code when opened; "
                "convert them to safetensors, or pass --allow-pickle to read the tensors and nothing else"
            )
        pickles = sorted(folder.glob("pytorch_model*.bin"))
        for path in pickles:
            _refuse_link(folder, path)
        return pickles
    elif (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} is an adapter without its base model; merge it into the base first")
    else:
        raise ModelError(f"{folder} has no weights: neither {SINGLE} nor {INDEX} is there")
    for path in files:
        _refuse_link(folder, path)
        header = check_safetensors(path)
        if not packed:
            _refuse_packed(path, header)
        if path.name != SINGLE:
            _refuse_absent(folder, path, header)
    return files


def _refuse_link(folder: Path, path: Path) -> None:
    """A link that leaves the folder may lead anywhere; those of the hub's cache lead to its store of blobs.

    The folder itself may be a link.
    """
    if not path.is_symlink():
        return
    home, target = folder.resolve(), path.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise ModelError(f"{path} is a link out of its folder, to {target}; give the folder that holds the file itself")


def _refuse_packed(path: Path, header: dict[str, Any]) -> None:
    """transformers would read packed weights as if they were numbers (old masks and position ids are no weights)."""
    for name, entry in header.items():
        if name.endswith(".weight") and str(entry.get("dtype")).startswith(PACKED_DTYPES):
            raise ModelError(
                f"{path} holds {name} as {entry['dtype']}: packed weights, and config.json has no quantization_config"
            )


def _indexed(folder: Path) -> list[Path]:
    path = folder / INDEX
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is not a valid index of weights: {error!r}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{path} points outside the model folder: {name!r}")
    if not names:
        raise ModelError(f"{path} is not a valid index of weights: it names no file")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} of {len(names)} weight files: {', '.join(missing)}")
    _refuse_unnamed(folder, path, names)
    return [folder / name for name in names]


def _refuse_absent(folder: Path, path: Path, header: dict[str, Any]) -> None:
    """What the index promises must be there."""
    promised = json.loads((folder / INDEX).read_bytes())["weight_map"]
    if lacking := [name for name, file in promised.items() if file == path.name and name not in header]:
        raise ModelError(f"{path} lacks {some(lacking)}, which {INDEX} says is in it")


def _refuse_unnamed(folder: Path, index: Path, names: list[str]) -> None:
    """A file `…-00002-of-00003.safetensors` that the index leaves out would be passed over in silence."""
    series = {match[1] for name in names if (match := _SHARD.fullmatch(name))}
    here = [path.name for path in folder.glob("*.safetensors") if path.name not in names]
    if left := sorted(name for name in here if (match := _SHARD.fullmatch(name)) and match[1] in series):
        raise ModelError(f"{index} does not name {', '.join(left)}, which belongs to the same series")


def check_safetensors(path: Path) -> dict[str, Any]:
    """Reads the header and checks that the file is as long as it says.

    Returns:
        The header: tensor name -> dtype, shape, data_offsets.

    Raises:
        ModelError: an empty file, a Git-LFS pointer, a damaged header, a truncated file, or one that may not be read.
    """
    try:
        return _checked_header(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None


def _checked_header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ModelError(f"{path} is a Git-LFS pointer, not the weights; run `git lfs pull` in its repository")
        if size < 8:
            raise ModelError(f"{path} is too short for a safetensors file: {size} bytes")
        file.seek(0)
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(HEADER_LIMIT, size - 8):
            raise ModelError(f"{path} is not a whole safetensors file: its header claims {length} of {size} bytes")
        try:
            header = json.loads(file.read(length))
            expected = 8 + length + _end(header)
        except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ModelError(f"{path} has a damaged safetensors header: {error!r}") from None
    if expected != size:
        state = "truncated" if size < expected else "too long"
        raise ModelError(f"{path} is {state}: its header describes {expected} bytes, the file has {size}")
    return dict(header)


def _end(header: dict[str, Any]) -> int:
    """Where the last tensor ends, counted from the first; each must begin where the one before it ended.

    Raises:
        ValueError, TypeError, KeyError: an entry that says no whole numbers, a hole, tensors that overlap.
    """
    spans = []
    for name, entry in header.items():
        name.encode()  # a lone surrogate could be written nowhere
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        numbers = [start, stop, *entry["shape"]]
        if not isinstance(entry["shape"], list) or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"{name}: offsets {entry['data_offsets']} and shape {entry['shape']}")
        spans.append((start, stop, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end or stop < start:
            raise ValueError(f"{name} lies at {start} to {stop}, and {end} is where it should begin")
        end = stop
    return end


def states(paths: list[Path]) -> list[tuple[int, int, int]]:
    """Inode, size and time of change of files: what differs once somebody has written to them.

    Raises:
        ModelError: one is gone.
    """
    try:
        return [(found.st_ino, found.st_size, found.st_mtime_ns) for found in (path.stat() for path in paths)]
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror or error}") from None


def fingerprint(folder: Path, weights: list[Path]) -> str:
    """SHA-256 over the configuration and every byte of the weight files, which are hashed at the same time.

    Samples would not do: checkpoints that differ in a few weights are what this project is about.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    with ThreadPoolExecutor() as threads:
        for path, content in zip(weights, threads.map(_file_digest, weights), strict=True):
            digest.update(f"{path.name}\0{content}\0".encode())
    return digest.hexdigest()


def fingerprint_in_memory(model: nn.Module) -> str:
    """SHA-256 over the class, the configuration and every tensor of a model that has no files."""
    config: Any = model.config
    described = json.dumps([type(model).__name__, config.to_dict()], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
