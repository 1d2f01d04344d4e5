"""The table of faults names tests that exist, and every fault by its number."""

import re
from pathlib import Path

TABLE = (Path(__file__).parents[2] / "docs" / "faults.md").read_text(encoding="utf-8")
TESTS = Path(__file__).parents[1]


def test_every_test_that_is_named_is_there() -> None:
    missing = []
    for row in TABLE.splitlines():
        home = ""
        for path, name in re.findall(r"`([\w/]*\.py)?(?:::(\w+))?`", row):
            home = path or home
            if home and not (TESTS / home).is_file():
                missing.append(home)
            elif home and name and f"def {name}(" not in (TESTS / home).read_text(encoding="utf-8"):
                missing.append(f"{home}::{name}")
    assert missing == []
    assert len(re.findall(r"`[\w/]+\.py::", TABLE)) > 60


def test_every_fault_has_its_row() -> None:
    numbers = {int(n) for cell in re.findall(r"^\| ([\d, ]+) \|", TABLE, flags=re.MULTILINE) for n in cell.split(",")}
    assert numbers == set(range(1, 59))
