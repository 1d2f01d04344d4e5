"""How many tokens a call of a block should hold: processor time a token against the size of the call.

    python benchmarks/stacking.py [--d-model 256] [--context 128] [--keep-pages]

The engine's constants (`lesion.engine.plan.STACK_TOKENS`) were read off this; on a new kind of machine, look again.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from lesion.anatomy import dissect
from lesion.data import Batch
from lesion.engine import Skeleton, keep_pages

SIZES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
REPEATS = 5


def one_block(d_model: int, context: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=d_model,
        intermediate_size=d_model * 8 // 3,
        num_hidden_layers=1,
        num_attention_heads=max(1, d_model // 32),
        max_position_embeddings=context,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


@torch.inference_mode()
def microseconds_a_token(model: LlamaForCausalLM, tokens: int, context: int) -> float:
    anatomy = dissect(model)
    ids = torch.zeros((max(1, tokens // context), min(tokens, context)), dtype=torch.long)
    rows = torch.arange(len(ids))
    batch = Batch(ids, None, None, ids == 0, ids, rows, torch.zeros_like(rows))
    stream, calls = Skeleton(anatomy).enter(batch)
    times = []
    for _ in range(REPEATS + 1):
        started = time.process_time()
        anatomy.blocks[0](stream, *calls[0].arguments, **calls[0].keywords)
        times.append(time.process_time() - started)
    return statistics.median(times[1:]) / ids.numel() * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--keep-pages", action="store_true", help="as the command line does")
    arguments = parser.parse_args()
    if arguments.keep_pages and not keep_pages():
        parser.error("the allocator of this machine cannot be told to keep pages")
    model = one_block(arguments.d_model, arguments.context)
    table = Table("tokens in a call", "processor µs a token", title=f"d_model {arguments.d_model}")
    for tokens in SIZES:
        table.add_row(str(tokens), f"{microseconds_a_token(model, tokens, arguments.context):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
