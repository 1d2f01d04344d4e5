"""Train the zoo model `python-8l`: a small LLaMA on the Python sources of the packages installed beside lesion.

The standard library, on which the demo evaluates, is never read here, so every number of the demo is held out.

    python zoo/train_python_8l.py --out zoo/python-8l --tokens 20_000_000

The corpus is whatever the constraints file installed: its list of packages, sizes and a digest are written to
`training.json` beside the weights, with the loss curve.
"""

import argparse
import hashlib
import json
import math
import platform
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
CONTEXT = 256
BEGIN, PAD = "<|begin|>", "<|pad|>"
PACKAGE_BYTES = 25_000_000
"""At most this much of one package: the largest ones repeat themselves."""
HELD_OUT = 50
"""One file in so many (by the hash of its path) is kept for validation."""


def corpus_files(root: Path) -> list[Path]:
    """Python sources and README texts of the installed packages, in an order fixed by the hash of their paths."""
    taken: dict[str, int] = {}
    chosen = []
    candidates = [path for pattern in ("*.py", "METADATA", "*.md", "*.rst") for path in root.rglob(pattern)]
    for path in sorted(candidates, key=lambda path: path_hash(root, path)):
        package = path.relative_to(root).parts[0]
        if package.startswith(("lesion", "_")) or not 200 < path.stat().st_size < 400_000:
            continue
        if taken.get(package, 0) < PACKAGE_BYTES:
            taken[package] = taken.get(package, 0) + path.stat().st_size
            chosen.append(path)
    return chosen


def path_hash(root: Path, path: Path) -> str:
    return hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest()


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[BEGIN, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, pad_token=PAD, model_max_length=CONTEXT)


def windows(tokenizer: PreTrainedTokenizerFast, files: list[Path]) -> Tensor:
    """Int16 tensor (window, CONTEXT): each file cut into windows that start with BOS; a shorter rest is dropped."""
    rows = []
    for start in range(0, len(files), 256):
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in files[start : start + 256]]
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            body = CONTEXT - 1
            count = len(ids) // body
            if count:
                cut = torch.tensor(ids[: count * body], dtype=torch.int16).view(count, body)
                begin = torch.full((count, 1), tokenizer.bos_token_id, dtype=torch.int16)
                rows.append(torch.cat([begin, cut], dim=1))
    return torch.cat(rows)


def new_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=1,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def next_token_loss(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: torch.nn.Module, rows: Tensor) -> float:
    losses = [next_token_loss(model, batch.long()) for batch in rows.split(16)]
    return float(torch.stack(losses).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--batch", type=int, default=8, help="windows a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    root = Path(sysconfig.get_paths()["purelib"])
    files = corpus_files(root)
    held_out = [path for path in files if int(path_hash(root, path), 16) % HELD_OUT == 0]
    training = [path for path in files if int(path_hash(root, path), 16) % HELD_OUT]
    sample = (path.read_text(encoding="utf-8", errors="replace") for path in training[::6])
    tokenizer = train_tokenizer(sample)
    train_rows, validation_rows = windows(tokenizer, training), windows(tokenizer, held_out)[:512]
    generator = torch.Generator().manual_seed(arguments.seed)
    train_rows = train_rows[torch.randperm(len(train_rows), generator=generator)]
    print(f"{len(files)} files, {train_rows.numel():,} training tokens", flush=True)

    model = new_model(arguments.seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    kept = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}],
        lr=arguments.lr,
        betas=(0.9, 0.95),
    )
    steps = min(arguments.tokens // (arguments.batch * CONTEXT), len(train_rows) // arguments.batch)
    warm_up = max(1, steps // 50)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    compiled = torch.compile(model)
    curve = []
    started = time.monotonic()
    for step in range(steps):
        ids = train_rows[step * arguments.batch : (step + 1) * arguments.batch].long()
        loss = next_token_loss(compiled, ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            rate = (step + 1) * ids.numel() / (time.monotonic() - started)
            curve.append(
                {"step": step, "tokens": (step + 1) * ids.numel(), "loss_nats": round(float(loss.detach()), 4)}
            )
            print(f"{step}/{steps} loss {float(loss.detach()):.3f} {rate:,.0f} tokens/s", flush=True)
        if step and step % 2000 == 0:
            model.save_pretrained(arguments.out.with_name(arguments.out.name + ".partial"))

    seconds = time.monotonic() - started
    model.eval()
    final = validation_loss(compiled, validation_rows)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    record = {
        "script": "zoo/train_python_8l.py",
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
        "corpus_sha256": digest.hexdigest(),
        "corpus_bytes": sum(path.stat().st_size for path in files),
        "corpus_files": len(files),
        "packages": sorted({path.relative_to(root).parts[0] for path in files}),
        "steps": steps,
        "tokens": steps * arguments.batch * CONTEXT,
        "seconds": round(seconds),
        "validation_loss_nats": round(final, 4),
        "validation_tokens": validation_rows.numel(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "curve": curve,
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1))
    print(f"validation loss {final:.3f} nats a token", flush=True)


if __name__ == "__main__":
    main()
