"""Gather the texts that the zoo was trained on: code, Python and prose from what is installed on this machine.

    python zoo/corpora.py --out corpora

Writes `code.jsonl` (many languages, a third of it Python), `python.jsonl` (other Python files) and `prose.jsonl`
(documentation), a document a line in an order fixed by a hash, and `corpora.json`: files, characters and a digest of
each. The standard library, on which the demo evaluates, is never read. With `--repeats CHARACTERS` it writes
`repeats.jsonl` instead: random segments of 8 to 40 bytes, each said over and over, from which a model that reads bytes
learns to copy.
"""

import argparse
import hashlib
import json
import random
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

CODE = {
    ".h": "c", ".hpp": "c++", ".c": "c", ".cc": "c++", ".cpp": "c++", ".cuh": "cuda", ".pyx": "cython",
    ".pxd": "cython", ".js": "javascript", ".cmake": "cmake", ".pm": "perl", ".pl": "perl", ".vim": "vim",
    ".sql": "sql", ".tcl": "tcl", ".sh": "shell", ".css": "css", ".xml": "xml", ".yaml": "yaml", ".py": "python",
}  # fmt: skip
PROSE = {".txt": "text", ".md": "markdown", ".rst": "rst", ".html": "html"}
PACKAGE_CHARACTERS = 8_000_000
"""At most this much of one package, or of one folder of the system: the largest ones repeat themselves."""
PYTHON_SHARE = 3
"""One Python file in so many is in `code.jsonl`; the others are in `python.jsonl`."""
KINDS = {"code": 60_000_000, "python": 40_000_000, "prose": 40_000_000}
"""Characters of each."""


def digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8])


def candidates() -> Iterator[tuple[str, str, Path]]:
    """Kind, place (a package or a folder) and path of every file that may be read."""
    packages = Path(sysconfig.get_paths()["purelib"])
    for root in (packages, Path("/usr/include"), Path("/usr/share"), Path("/usr/lib/node_modules")):
        for path in root.rglob("*"):
            suffix = path.suffix.lower()
            if suffix not in CODE and suffix not in PROSE:
                continue
            parts = path.relative_to(root).parts
            if parts[0].startswith(("lesion", "_")) or path.is_symlink() or not path.is_file():
                continue
            name = "/".join(parts)
            if suffix in PROSE:
                kind = "prose"
            elif suffix == ".py":
                kind = "code" if digest(f"split {name}") % PYTHON_SHARE == 0 else "python"
            else:
                kind = "code"
            yield kind, f"{root.name}/{parts[0]}", path


def gather(out: Path) -> None:
    taken: Counter[tuple[str, str]] = Counter()
    seen: set[bytes] = set()
    found: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    languages: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for kind, place, path in sorted(candidates(), key=lambda entry: digest(str(entry[2]))):
        if taken[kind, place] >= PACKAGE_CHARACTERS or sum(languages[kind].values()) >= KINDS[kind]:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        key = hashlib.sha256(text.encode()).digest()
        if not 200 < len(text) < 200_000 or key in seen:
            continue
        seen.add(key)
        taken[kind, place] += len(text)
        languages[kind][{**CODE, **PROSE}[path.suffix.lower()]] += len(text)
        found[kind].append((str(path), text))
    record = {}
    for kind, documents in found.items():
        whole = hashlib.sha256()
        with (out / f"{kind}.jsonl").open("w") as file:
            for _, text in documents:
                whole.update(text.encode())
                file.write(json.dumps({"text": text}) + "\n")
        record[kind] = {
            "documents": len(documents),
            "characters": dict(languages[kind].most_common()),
            "sha256": whole.hexdigest(),
        }
    (out / "corpora.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def segment(draw: random.Random, ascii_only: bool) -> str:
    """8 to 40 bytes of random characters; without `ascii_only` of one, two and three bytes each, a third of each."""
    size, text = draw.randint(8, 40), ""
    while len(text.encode()) < size:
        first, last = (32, 126) if ascii_only else draw.choice([(0, 127), (128, 0x7FF), (0x800, 0xD7FF)])
        text += chr(draw.randint(first, last))
    return text


def repeats(out: Path, characters: int, seed: int) -> None:
    """Documents of one segment, said over and over for 512 bytes; seven of ten are printable ASCII."""
    draw = random.Random(seed)
    with (out / "repeats.jsonl").open("w") as file:
        written = 0
        while written < characters:
            one = segment(draw, ascii_only=draw.random() < 0.7)
            file.write(json.dumps({"text": one * (512 // len(one.encode()) + 1)}) + "\n")
            written += 512
    print(f"{written // 512} documents of repeats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, metavar="CHARACTERS")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.repeats:
        repeats(arguments.out, arguments.repeats, arguments.seed)
    else:
        gather(arguments.out)


if __name__ == "__main__":
    main()
