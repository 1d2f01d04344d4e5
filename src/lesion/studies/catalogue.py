"""What lesion knows: families and what can be done with each, and the models of the zoo. No weights are loaded."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lesion.anatomy import SITES, Family, known_families, zoo_models
from lesion.anatomy.family import NOT_STUDIED
from lesion.anatomy.files import read_config, weight_files
from lesion.anatomy.packing import METHOD
from lesion.anatomy.source import ZOO, zoo_folder
from lesion.anatomy.streaming import stored_tensors
from lesion.errors import ModelError


@dataclass(frozen=True)
class FamilyEntry:
    """One family.

    Attributes:
        objective: what is predicted: `causal` (the next token), `masked` (masked tokens), `image` (a class).
        sites: sites that its blocks have.
        without: the sites that they do not have, and why.
        layers: whether `lesion layers` reads it.
        heads: whether the heads' outputs (`z`) can be edited.
        neurons: whether the MLP's neurons (`mlp_post`) can be edited.
        norm: `pre`, `post`, or both, where that depends on the configuration.
        halves: whether attention and MLP of a block run `in turn` or `side by side`, or both.
        positions: `learned`, `rotary`, `ALiBi`, or several.
        packed: the packings of weights that can be read, for studies of activations.
        stream: whether its blocks can be read from disk one at a time.
    """

    model_type: str
    architectures: tuple[str, ...]
    objective: str
    sites: tuple[str, ...]
    without: Mapping[str, str]
    layers: bool
    heads: bool
    neurons: bool
    norm: tuple[str, ...]
    halves: tuple[str, ...]
    positions: tuple[str, ...]
    packed: tuple[str, ...]
    stream: bool


@dataclass(frozen=True)
class ZooEntry:
    """One model of the zoo: `parameters` as stored, `bytes` of its folder, and the first line of its card."""

    name: str
    architecture: str
    parameters: int
    bytes: int
    card: str


@dataclass(frozen=True)
class Catalogue:
    """Families in alphabetical order, model types that are refused by name with the reason, and the zoo."""

    families: tuple[FamilyEntry, ...]
    refused: Mapping[str, str]
    zoo: tuple[ZooEntry, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and dictionaries, for JSON."""
        return asdict(self)


def catalogue() -> Catalogue:
    """Everything that there is to choose from."""
    families = tuple(family_entry(family) for _, family in sorted(known_families().items()))
    return Catalogue(families, dict(NOT_STUDIED), tuple(zoo_entry(name) for name in zoo_models()))


def family_entry(family: Family) -> FamilyEntry:
    """What one family can do; what depends on the configuration is asked of its tiny configurations."""
    from transformers import AutoConfig

    ids = {"bos_token_id": None, "eos_token_id": None}  # the defaults are not in a tiny vocabulary
    configs = [AutoConfig.for_model(family.model_type, **{**ids, **sizes}) for sizes in family.tiny.values()]
    return FamilyEntry(
        model_type=family.model_type,
        architectures=family.architectures,
        objective=family.objective,
        sites=family.sites,
        without={site: reason for site in SITES if (reason := _reason_without(family, site))},
        layers={"attn_out", "mlp_out"} <= set(family.sites),
        heads="z" in family.sites,
        neurons="mlp_post" in family.sites,
        norm=_each("post" if family.post_norm(config) else "pre" for config in configs),
        halves=_each("side by side" if family.parallel(config) else "in turn" for config in configs),
        positions=_each(_positions(family, config) for config in configs),
        packed=(METHOD,),
        stream=True,
    )


def _reason_without(family: Family, site: str) -> str | None:
    try:
        family.site(site)
    except ModelError as reason:
        return str(reason)
    return None


def _each(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


def _positions(family: Family, config: Any) -> str:
    """A table, a slope on the distance, or a rotation, as the configuration or the model's class tells."""
    from transformers import MODEL_MAPPING

    if family.positions is not None:
        return "learned"
    if getattr(config, "alibi", False):
        return "ALiBi"
    if hasattr(config, "rope_parameters") or hasattr(config, "rotary_dim"):
        return "rotary"
    return "ALiBi" if hasattr(MODEL_MAPPING[type(config)], "build_alibi_tensor") else "unknown"


def zoo_entry(name: str) -> ZooEntry:
    """One model of the zoo, from the headers of its files and its card."""
    folder = zoo_folder() / name
    stored = stored_tensors(weight_files(folder, allow_pickle=False))
    return ZooEntry(
        name=f"{ZOO}{name}",
        architecture=" ".join(read_config(folder).get("architectures", [])),
        parameters=sum(math.prod(tensor.shape) for tensor in stored.values()),
        bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        card=_card(name),
    )


def _card(name: str) -> str:
    """The first line under the model's heading in the zoo's README; empty where the zoo has none."""
    path = zoo_folder() / "README.md"
    _, _, below = (path.read_text() if path.is_file() else "").partition(f"## `{name}`\n")
    return next((line for line in below.splitlines() if line.strip()), "")
