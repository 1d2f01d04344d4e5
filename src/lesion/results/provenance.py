"""What produced a run: versions of the packages, and the commit of lesion's own checkout."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "lesion",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "scipy",
    "matplotlib",
    "jinja2",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter to a result, read without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit that lesion runs from, with `-dirty` behind it if tracked files were changed.

    None where lesion is installed rather than checked out, without git, or before the first commit.
    """
    package = Path(__file__).resolve().parents[1]
    root = package.parents[1]
    if package != root / "src" / "lesion" or not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        answer = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
