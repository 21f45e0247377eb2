#!/usr/bin/env bash
# Runs on a TPU worker, started by train.sh: dat_jax.main with its log in ~/dat_jax.log and its exit status in ~/dat_jax.exit.
#   launch/worker.sh ARGUMENTS_OF_MAIN
set -euo pipefail
cd "$(dirname "$0")/.."

rm -f ~/dat_jax.exit
if [[ -f ~/dat_jax.pid ]] && kill "$(cat ~/dat_jax.pid)" 2>/dev/null; then  # a former run that hangs would hold the chips
  for ((i = 0; i < 60; i++)); do kill -0 "$(cat ~/dat_jax.pid)" 2>/dev/null || break; sleep 1; done
fi
if [[ "${LIBTPU_FLAGS:-0}" == 1 ]]; then
  LIBTPU_INIT_ARGS=$(awk -v generation="$GENERATION" '$1 == "all" || $1 == generation { print $2 }' launch/libtpu_flags.txt | xargs)
  export LIBTPU_INIT_ARGS
fi
"${DAT_JAX_PYTHON:-$HOME/dat_jax_venv/bin/python}" -u -m dat_jax.main "$@" >> ~/dat_jax.log 2>&1 &
echo $! > ~/dat_jax.pid
trap 'kill -TERM "$(cat ~/dat_jax.pid)"' TERM INT
status=0
wait %1 || status=$?
if kill -0 "$(cat ~/dat_jax.pid)" 2>/dev/null; then status=0; wait %1 || status=$?; fi  # the trap ended the first wait
echo "$status" > ~/dat_jax.exit
exit "$status"
