#!/usr/bin/env bash
# Follows the log of one worker, 0 unless --worker=N is given.
#   launch/logs.sh [--name=NAME] [--worker=N] [--dry-run]
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname "$0")/env.sh" "$@"

worker=--worker=0
for argument in ${ARGS[@]+"${ARGS[@]}"}; do
  case "$argument" in
    --worker=*) worker=$argument ;;
    *) echo "unknown argument $argument" >&2; exit 2 ;;
  esac
done
tpu tpu-vm ssh "${NODES[0]}" "$worker" --command='tail -n 200 -F ~/dat_jax.log'
