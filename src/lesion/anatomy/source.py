"""Where a model comes from: a folder, the zoo, or the hub."""

from importlib import resources
from pathlib import Path

from lesion.errors import ModelError

ZOO = "zoo:"
PATTERNS = ["*.json", "*.model", "*.txt", "*.jinja"]


def zoo_folder() -> Path:
    """Folder of the small trained models that come with lesion, in an installed package or in a checkout."""
    installed = Path(str(resources.files("lesion"))) / "zoo"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "zoo"


def zoo_models() -> list[str]:
    """Names of the models in the zoo."""
    return sorted(path.parent.name for path in zoo_folder().glob("*/config.json"))


def resolve(name: str, *, allow_pickle: bool = False) -> Path:
    """Folder that holds the model called `name`: a local folder, `zoo:NAME`, or a hub id with an optional `@revision`.

    Raises:
        ModelError: no such folder, zoo model or repository, or the hub cannot be reached.
    """
    if name.startswith(ZOO):
        if name.removeprefix(ZOO) not in zoo_models():
            raise ModelError(
                f"the zoo has no model {name.removeprefix(ZOO)!r}; it has: {', '.join(zoo_models()) or 'none'}"
            )
        return zoo_folder() / name.removeprefix(ZOO)
    try:
        path = Path(name).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that is not there
        raise ModelError(f"{name[:200]!r} cannot be looked up: {error}") from None
    if is_folder:
        return path
    if exists:
        raise ModelError(f"{name} is a file; give the folder that holds config.json and the weights")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"there is no model folder at {name}")
    return _from_hub(name, allow_pickle=allow_pickle)


def _from_hub(name: str, *, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    weights = ["*.safetensors"] + (["pytorch_model*.bin"] if allow_pickle else [])
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=PATTERNS + weights))
    except RevisionNotFoundError:
        raise ModelError(f"the hub has {repository!r}, but no revision {revision!r} of it") from None
    except RepositoryNotFoundError:
        raise ModelError(f"neither a local folder nor the hub has a model {repository!r} that you may read") from None
    except HFValidationError:
        raise ModelError(f"there is no folder {name!r}, and it is not a hub id (owner/name) either") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError, OSError) as error:
        raise ModelError(
            f"there is no folder {name!r}, and the hub cannot be asked for it ({type(error).__name__}); "
            "check the name and the network, or give a local folder"
        ) from None
