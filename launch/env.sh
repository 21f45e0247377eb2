#!/usr/bin/env bash
# What every script of this folder shares. Each setting is overridden by the environment (NAME=mine launch/create.sh) or,
# where a flag exists, by the flag. Sourced, not run.
set -euo pipefail

: "${NAME:=dat}"              # name of the slice and of its queued resource
: "${ZONE:=us-west4-a}"
: "${PROJECT:=}"              # empty: gcloud's own default
: "${TYPE:=v5litepod-16}"     # v5litepod-16 = v5e:4x4; v6e-8 = v6e:2x4; v5p-32 = 16 chips (the number counts cores)
: "${SLICES:=1}"              # more than one: also set --config.mesh.dcn_data to it
: "${SPOT:=0}"                # 1 or --spot: cheaper, may be taken away at any time; use supervise.sh
: "${VALID_FOR:=24h}"         # how long a request may wait for capacity
: "${WORKDIR:=}"              # gs://bucket/run: checkpoints, samples and reports; the same folder resumes
: "${CONFIG:=configs/gemma_tpu.py}"
: "${PYTHON_VERSION:=3.11}"   # TPU images ship 3.10, dat_jax needs 3.11
: "${LIBTPU_FLAGS:=0}"        # 1: pass launch/libtpu_flags.txt to the compiler
: "${HF_TOKEN:=}"             # for gated weights; goes by stdin into the run's environment, never to a command line, a file or a log
: "${POLL:=60}"               # seconds between two looks at a slice
DRY_RUN=0
ARGS=()                       # what is left on the command line: passed on to dat_jax.main
for argument in "$@"; do
  case "$argument" in
    --dry-run) DRY_RUN=1 ;;
    --spot) SPOT=1 ;;
    --name=*) NAME="${argument#*=}" ;;
    --workdir=*) WORKDIR="${argument#*=}" ;;
    --config=*) CONFIG="${argument#*=}" ;;
    --help) sed -n '2,/^[^#]/{/shellcheck/d;s/^# //p}' "$0"; exit 0 ;;
    *) ARGS+=("$argument") ;;
  esac
done
[[ "$TYPE" =~ ^(v5litepod|v6e|v5p)-([0-9]+)$ ]] || { echo "TYPE is $TYPE; allowed: v5litepod-N, v6e-N, v5p-N" >&2; exit 2; }
chips=${BASH_REMATCH[2]}
# shellcheck disable=SC2034  # used by the scripts that source this file
case "${BASH_REMATCH[1]}" in
  v5litepod) RUNTIME=v2-alpha-tpuv5-lite GENERATION=v5e ;;
  v6e) RUNTIME=v2-alpha-tpuv6e GENERATION=v6e ;;
  v5p) RUNTIME=v2-alpha-tpuv5 GENERATION=v5p chips=$((chips / 2)) ;;
esac
# Hosts carry 4 chips, but 8 on the largest v5e and v6e slices of one host.
# shellcheck disable=SC2034
if [[ "$GENERATION" != v5p && "$chips" -le 8 ]]; then HOSTS=$SLICES; else HOSTS=$((SLICES * ((chips + 3) / 4))); fi
NODES=("$NAME")
if ((SLICES > 1)); then NODES=(); for ((i = 0; i < SLICES; i++)); do NODES+=("$NAME-$i"); done; fi

tpu() {  # gcloud compute tpus ..., or with --dry-run its command line
  local command=(gcloud compute tpus "$@" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
  if ((DRY_RUN)); then echo "${command[*]@Q}"; else "${command[@]}"; fi
}
workers() {  # the same shell command on every worker of every slice
  local node; for node in "${NODES[@]}"; do tpu tpu-vm ssh "$node" --worker=all --command="$1"; done
}
state() {  # of the queued resource; a failing network is not an absent slice
  local answer
  if answer=$(tpu queued-resources describe "$NAME" "--format=value(state.state)" 2>&1); then echo "$answer"
  elif [[ "$answer" == *NOT_FOUND* ]]; then echo ABSENT; else echo UNKNOWN; fi
}
need_workdir() { [[ "$WORKDIR" == gs://?* ]] || { echo "WORKDIR is '$WORKDIR'; give --workdir=gs://bucket/run" >&2; exit 2; }; }
