#!/bin/sh
# Train the models of the zoo but python-8l, which has a script of its own. About two hours on two CPU cores.
#
#     sh zoo/train.sh FOLDER
#
# Everything is written below FOLDER; `zoo/NAME` are the folders named at the end, with what `zoo/README.md` says.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"

python "$here/corpora.py" --out corpora
python "$here/corpora.py" --out corpora --repeats 16000000
python "$here/digits.py" --out digit-pictures

# bytes-4l: first to copy, then to read code without forgetting it
lesion train pretrain --config llama-tiny --vocabulary 258 --data repeats=corpora/repeats.jsonl --context 96 \
    --batch-size 32 --steps 1200 --lr 1e-3 --warmup 100 --compute bfloat16 --store fp32 --evaluate-every 200 --out copies
lesion train finetune copies/models/step-001200/fp32 --data code=corpora/code.jsonl --data prose=corpora/prose.jsonl \
    --data repeats=corpora/repeats.jsonl --context 256 --tokens 20000000 --batch-size 16 --lr 1e-3 --warmup 100 \
    --compute bfloat16 --store bf16,fp32 --store-every 1000 --evaluate-every 500 --out base

# bytes-4l-python: its partner; the start is the base as stored in bfloat16
