"""Who made a shard: numbers of unlike devices, threads or versions may differ in their last bits."""

import platform
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch

from lesion.results import versions

DECISIVE = ("lesion", "torch", "transformers")
"""Packages whose versions decide what a sweep computes."""


@dataclass(frozen=True, order=True)
class Maker:
    """One process on one device.

    Attributes:
        device: the kind of device: a GPU's name, or the instructions that torch uses of a CPU.
        threads: that torch computes with.
        versions: of the decisive packages, in words.
    """

    host: str
    device: str
    threads: int
    versions: str

    @classmethod
    def here(cls, device: torch.device) -> "Maker":
        """This process, computing on `device`."""
        on_gpu = device.type == "cuda"
        kind = torch.cuda.get_device_name(device) if on_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}"
        found = versions()
        return cls(
            host=platform.node(),
            device=kind,
            threads=torch.get_num_threads(),
            versions=", ".join(f"{name} {found[name]}" for name in DECISIVE),
        )

    def row(self) -> list[str | int]:
        """As JSON holds it."""
        return list(astuple(self))


def unlike(makers: Iterable[Maker]) -> str | None:
    """What a reader must know where unlike makers shared the work, in one line; None where they were alike."""
    kinds: dict[tuple[str, int, str], str] = {}
    for maker in sorted(makers):
        kinds.setdefault((maker.device, maker.threads, maker.versions), maker.host)
    if len(kinds) < 2:
        return None
    named = "; ".join(
        f"{device}, {threads} threads, {made} ({host})" for (device, threads, made), host in kinds.items()
    )
    return f"unlike machines shared the work, so that numbers may differ in their last bits from those of one: {named}"
