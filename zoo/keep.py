"""Put a trained model into the zoo: its files, and `training.json`, which says how it was made.

    python zoo/keep.py RUN zoo/NAME [--dtype bf16] [--pairs DTYPE=RUN …]

RUN is a run folder of `lesion train`; the last stored step is taken. `--pairs` adds the tables of `lesion zero-modes
diff` against the start, for each type that was stored, to `zero-modes.json`.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

KEPT = ("study", "arguments", "versions", "commit", "counts", "timings", "warnings")
SUMS = ["layer", "component", "n_weights", "n_zero_modes", "fraction"]


def records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(pd.read_parquet(path).to_json(orient="records", double_precision=6))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--pairs", nargs="*", default=[])
    arguments = parser.parse_args()
    model = max((arguments.run / "models").glob("step-*")) / arguments.dtype
    arguments.out.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        shutil.copyfile(file, arguments.out / file.name)
    manifest = json.loads((arguments.run / "run.json").read_text())
    said = {name: manifest[name] for name in KEPT if name in manifest}
    curve = pd.read_parquet(arguments.run / "tables" / "training.parquet")
    every = max(1, len(curve) // 100)
    said["loss"] = curve.iloc[every - 1 :: every][["step", "loss_nats"]].round(4).values.tolist()
    for table in ("training_evaluation", "training_evaluation_by_domain"):
        path = arguments.run / "tables" / f"{table}.parquet"
        if path.is_file():
            said[table] = records(path)
    (arguments.out / "training.json").write_text(json.dumps(said, indent=1) + "\n")
    if arguments.pairs:
        tables = {
            dtype: pd.read_parquet(Path(run) / "tables" / "zero_modes_summary.parquet")
            for dtype, _, run in (pair.partition("=") for pair in arguments.pairs)
        }
        content = {
            dtype: json.loads(table[SUMS].to_json(orient="records", double_precision=6))
            for dtype, table in tables.items()
        }
        (arguments.out / "zero-modes.json").write_text(json.dumps(content, indent=1) + "\n")
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {model}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
