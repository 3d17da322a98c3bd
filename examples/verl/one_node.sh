#!/usr/bin/env bash
# DeepCompress on the GPUs of one host: examples/verl/one_node.sh MODEL DATA_FOLDER [verl's settings]
# MODEL is a folder or an id on the Hugging Face hub; DATA_FOLDER is what make_data.py wrote.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
model="$1" data="$2"
shift 2
exec python -m verl.trainer.main_ppo --config-path "$here" --config-name deepcompress \
  actor_rollout_ref.model.path="$model" \
  data.train_files="$data/train.parquet" data.val_files="$data/val.parquet" \
  trainer.nnodes=1 trainer.n_gpus_per_node="${GPUS:-8}" "$@"
