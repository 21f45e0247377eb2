#!/usr/bin/env bash
# Requests a TPU slice as a queued resource and waits until it is up. Settings: launch/env.sh.
#   launch/create.sh [--spot] [--name=NAME] [--dry-run]
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname "$0")/env.sh" "$@"

request=(queued-resources create "$NAME" "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME" "--valid-until-duration=$VALID_FOR")
if ((SLICES > 1)); then request+=("--node-count=$SLICES" "--node-prefix=$NAME"); else request+=("--node-id=$NAME"); fi
if ((SPOT)); then request+=(--spot); fi
tpu "${request[@]}"
if ((DRY_RUN)); then state; exit 0; fi

while true; do
  now=$(state)
  case "$now" in
    ACTIVE) echo "$NAME is up"; exit 0 ;;
    FAILED | SUSPENDED | SUSPENDING | ABSENT) echo "$NAME: the request ended as $now" >&2; exit 1 ;;
    *) echo "$NAME: $now"; sleep "$POLL" ;;
  esac
done
