#!/usr/bin/env bash
# Attacks the trained models of a workdir, judges the answers and writes the report there; started and watched like training.
#   launch/evaluate.sh --workdir=gs://bucket/run [--config=configs/gemma_tpu.py] [--config.KEY=VALUE ...] [--dry-run]
set -euo pipefail
exec "$(dirname "$0")/train.sh" --mode=evaluate,judge,report "$@"
