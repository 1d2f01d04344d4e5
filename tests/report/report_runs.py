"""Synthetic runs with realistic shapes, made for the tests of the report only."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lesion.results import RunFolder

MakeRun = Callable[..., Path]


def layers_table(
    n_layers: int, *, n_documents: int = 120, seed: int = 0, labels: bool = True, kinds: Sequence[str] = ()
) -> pd.DataFrame:
    """A table like that of a trained model: the first block carries most, the interior little."""
    random = np.random.default_rng(seed)
    rows = []
    for kind in kinds or ("drop", "swap", "drop_attn", "drop_mlp"):
        for layer in range(n_layers - 1 if kind == "swap" else n_layers):
            weight = {"drop": 1.0, "swap": 0.55, "drop_attn": 0.35, "drop_mlp": 0.6}[kind]
            size = 8.0 if layer == 0 else 0.9 if layer == n_layers - 1 else 0.25 * np.exp(-layer / n_layers)
            kl = weight * size * random.uniform(0.8, 1.2)
            sem = np.nan if n_documents == 1 else 0.02 * kl + 0.002
            change, entropy = 0.85 * kl, (2.9 if layer == 0 else 0.3) * kl * random.uniform(-0.2, 1)
            rows.append(
                {
                    "intervention": kind,
                    "layer": layer,
                    "relative_depth": layer / (n_layers - 1) if n_layers > 1 else np.nan,
                    "n_tokens": 51_200 * n_documents // 100,
                    "n_documents": n_documents,
                    "loss_nats": 2.31 + change if labels else np.nan,
                    "loss_nats_sem": sem * 1.5 if labels else np.nan,
                    "loss_clean_nats": 2.31 if labels else np.nan,
                    "loss_clean_nats_sem": 0.021 if labels and n_documents > 1 else np.nan,
                    "loss_change_nats": change if labels else np.nan,
                    "loss_change_nats_sem": sem if labels else np.nan,
                    "kl_nats": kl,
                    "kl_nats_sem": sem,
                    "agreement": float(np.exp(-0.6 * kl)),
                    "agreement_sem": sem / 10,
                    "top1": 0.52 * float(np.exp(-0.5 * kl)) if labels else np.nan,
                    "top1_sem": sem / 12 if labels else np.nan,
                    "top1_clean": 0.52 if labels else np.nan,
                    "entropy_bits": 3.2 + entropy,
                    "entropy_bits_sem": sem,
                    "entropy_clean_bits": 3.2,
                    "entropy_change_bits": entropy,
                    "entropy_change_bits_sem": sem,
                }
            )
    return pd.DataFrame(rows)


def layers_manifest(
    table: pd.DataFrame, domains: Sequence[str], *, name: str, n_layers: int, objective: str
) -> dict[str, Any]:
    """The fields of `run.json` that a report may rely on."""
    tokens, documents = (int(table[name].max()) if len(table) else 0 for name in ("n_tokens", "n_documents"))
    shares = [{"name": domain, "n_documents": documents, "n_tokens": tokens} for domain in domains]
    return {
        "study": "layers",
        "command": f"lesion layers {name} --data stdlib",
        "arguments": {"context": 256, "layers": None, "interventions": ["drop", "swap", "drop-attn", "drop-mlp"]},
        "model": {
            "name": name,
            "family": "llama",
            "n_layers": n_layers,
            "d_model": 192,
            "d_mlp": 512,
            "n_heads": 6,
            "vocabulary": 2048,
            "n_parameters": 4_200_000,
            "objective": objective,
            "fingerprint": "ab" * 32,
            "norm": "pre",
        },
        "data": {
            "specs": list(domains),
            "domains": shares,
            "context": 256,
            "bos": True,
            "pack": False,
            "fingerprint": "cd" * 32,
        },
        "counts": {"n_tokens": tokens, "n_documents": documents},
        "device": "cpu",
        "dtype": "float32",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "seeds": {"seed": 0},
        "timings": {"seconds": 61.3, "tokens_per_second": 10_220.5},
    }


def maker(base: Path) -> MakeRun:
    """A function that makes a run folder with synthetic tables below `base`; every argument has a default."""

    def make(
        folder: str = "run",
        *,
        table: pd.DataFrame | None = None,
        n_layers: int = 8,
        name: str = "zoo:python-8l",
        domains: Sequence[str] = ("stdlib",),
        objective: str = "causal",
        status: Any = "complete",
        **changes: Any,
    ) -> Path:
        table = layers_table(n_layers) if table is None else table
        fields = layers_manifest(table, domains, name=name, n_layers=n_layers, objective=objective)
        parts = [table.assign(domain=domain) for domain in domains]
        for index, part in enumerate(parts[1:], start=1):
            part[["kl_nats", "kl_nats_sem"]] *= 1 + 0.4 * index
        by_domain = pd.concat(parts, ignore_index=True)
        by_domain.insert(0, "domain", by_domain.pop("domain"))
        with RunFolder.open(base / folder, identity={"study": "layers"}, manifest=fields | changes) as run:
            run.write_table("layers", table)
            run.write_table("layers_by_domain", by_domain)
            run.finish(status)
        return base / folder

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`maker` in the folder of the test."""
    return maker(tmp_path)
