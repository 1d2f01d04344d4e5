"""An environment of its own for each peer, from a file of pinned requirements."""

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent / ".envs"


def _requirements(peer: str) -> Path:
    return HERE / f"{peer}.txt"


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments], check=True
    )


def python_of(peer: str) -> Path:
    """The Python of a peer's environment, made or made anew where its requirements have changed.

    torch comes first and the same file constrains it afterwards, so that no peer brings a build of its own. Which
    build that is (CPU or CUDA) pip's own settings decide.

    Raises:
        subprocess.CalledProcessError: pip or venv failed; what they said is on standard error.
    """
    requirements, folder = _requirements(peer), ROOT / peer
    python, stamp = folder / "bin" / "python", folder / "installed-from"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"making {folder} from {requirements.name}; this takes some minutes", flush=True)
    ROOT.mkdir(exist_ok=True)
    (ROOT / ".gitignore").write_text("*\n")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    _pip(python, "--constraint", str(requirements), "torch")
    _pip(python, "--requirement", str(requirements))
    stamp.write_text(digest)
    return python
