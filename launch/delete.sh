#!/usr/bin/env bash
# Gives back the slice and its queued resource. The workdir on gs:// stays.
#   launch/delete.sh [--name=NAME] [--dry-run]
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname "$0")/env.sh" "$@"
tpu queued-resources delete "$NAME" --force --quiet
