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
lesion train finetune base/models/step-004785/fp32 --data python=corpora/python.jsonl --context 256 --tokens 2100000 \
    --batch-size 16 --steps 500 --lr 2e-5 --warmup 20 --compute bfloat16 --store bf16,fp16,fp32 --count-every 5 \
    --evaluate-every 100 --out tuned
pairs=""
for dtype in bf16 fp16 fp32; do
    lesion zero-modes diff "tuned/models/step-000000/$dtype" "tuned/models/step-000500/$dtype" --look none --out "$dtype"
    pairs="$pairs $dtype=$dtype"
done

# relu-4l: ReLU, learned positions
lesion train pretrain --config opt-tiny --data code=corpora/code.jsonl --data prose=corpora/prose.jsonl \
    --tokens 6000000 --batch-size 8 --lr 4e-3 --warmup 100 --weight-decay 0.3 --compute bfloat16 --log-every 20 \
    --store bf16 --store-every 500 --evaluate-every 500 --out relu

# vit-digits
lesion train pretrain --config vit-digits --data digit-pictures --epochs 10 --batch-size 64 --lr 1e-3 --warmup 100 \
    --store bf16 --evaluate-every 1000 --log-every 20 --out digits

python "$here/keep.py" base "$here/bytes-4l"
# shellcheck disable=SC2086  # one word for each type
python "$here/keep.py" tuned "$here/bytes-4l-python" --pairs $pairs
python "$here/keep.py" relu "$here/relu-4l"
python "$here/keep.py" digits "$here/vit-digits"
