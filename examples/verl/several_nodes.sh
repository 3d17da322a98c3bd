#!/usr/bin/env bash
# DeepCompress on several hosts with Ray; every host needs this folder, the model and the data at the same paths.
#   on the first host:   examples/verl/several_nodes.sh head
#   on each other host:  examples/verl/several_nodes.sh worker FIRST_HOST
#   on the first host:   NODES=2 examples/verl/several_nodes.sh train MODEL DATA_FOLDER [verl's settings]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
port="${RAY_PORT:-6379}"
role="${1:-}"
shift || true
case "$role" in
  head) exec ray start --head --port="$port" ;;
  worker) exec ray start --address="$1:$port" ;;
  train)
    export RAY_ADDRESS="127.0.0.1:$port"
    nodes="${NODES:?how many hosts: NODES=2 $0 train MODEL DATA_FOLDER}"
    exec "$here/one_node.sh" "$@" trainer.nnodes="$nodes"
    ;;
  *) echo "the first argument must be head, worker or train" >&2; exit 2 ;;
esac
