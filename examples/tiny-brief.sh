#!/usr/bin/env bash
# Makes tiny-brief, the embedded reasoner that DeepCompress taught to think in fewer tokens, and its horizon predictor:
#     examples/tiny-brief.sh FOLDER
# Run it in a clone with `pip install '.[train]'` on one GPU with 80 GB. Its longest step, DeepCompress, took six minutes on an
# H200. What research/log.md.xz tells of tiny-brief was measured on a model made with these settings.
set -euo pipefail
out=${1:?name the folder to write}
work=$out.work

# A start that can be brief, and errs where it checks nothing.
python -m leanthink.models.tiny.train --init tiny --out "$work/terse" --terse-share 0.7 --steps 2000 --lr 3e-3 --adamw-lr 3e-3 \
    --decay-share 0.7
python -m leanthink.models.tiny.train --init "$work/terse" --out "$work/start" --style-skew 0.7 --error-rate-if-unchecked 0.008 \
    --steps 200 --lr 1e-3 --adamw-lr 1e-3 --warmup-steps 20 --decay-share 1

# DeepCompress, 80 steps.
python -m leanthink train --config examples/deepcompress-tiny.yaml --model "$work/start" --out "$work/run" \
    --all-correct-weight 0.5 --set seed=1
mv "$work/run/final" "$out"

python bench/fit_tiny.py --model "$out" --targets horizon --out "$work/predictors"
mv "$work/predictors/horizon.safetensors" "$out"
echo "leanthink generate 'What is 48 times 37?' --model $out --predictor $out/horizon.safetensors"
