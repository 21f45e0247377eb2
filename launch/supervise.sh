#!/usr/bin/env bash
# Brings a run to its end on spot slices: creates, sets up, starts; when the slice is taken away, gets another and resumes.
# Runs where gcloud is logged in (a small VM or a laptop in tmux). Ends with the run's exit status, and deletes the slice when the run is done.
#   launch/supervise.sh --spot --workdir=gs://bucket/run [--config=...] [--mode=...] [--config.KEY=VALUE ...] [--dry-run]
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname "$0")/env.sh" "$@"
need_workdir
here=$(dirname "$0")
: "${MAX_FAILURES:=3}"        # crashes in a row on a healthy slice; preemptions and stock-outs are not counted

if ((DRY_RUN)); then
  for script in create setup train delete; do NAME=$NAME "$here/$script.sh" "$@"; done
  exit 0
fi

status_of_run() {  # running, lost (no process, no status), a number, or unreachable
  tpu tpu-vm ssh "${NODES[0]}" --worker=0 --command="cat ~/dat_jax.exit 2> /dev/null || \
    { kill -0 \$(cat ~/dat_jax.pid) 2> /dev/null && echo running || echo lost; }" 2>/dev/null || echo unreachable
}

begin() {  # the run started on a slice: the one that is up, or a new one
  case "$(state)" in
    ACTIVE) ;;
    UNKNOWN) return 1 ;;
    ABSENT) "$here/create.sh" "$@" || return ;;
    *) "$here/delete.sh" "$@" || true; "$here/create.sh" "$@" || return ;;
  esac
  "$here/setup.sh" "$@" && "$here/train.sh" "$@"
}

failures=0 missed=0
while true; do
  status=failed
  if begin "$@"; then status=running; fi
  while [[ "$status" == running ]]; do
    sleep "$POLL"
    status=$(status_of_run)
    if [[ "$status" == unreachable && "$(state)" =~ ^(ACTIVE|UNKNOWN)$ ]] && ((++missed < 5)); then status=running; else missed=0; fi
  done
  now=$(state)
  echo "$(date -u +%FT%TZ) run: $status, slice: $now"
  if [[ "$status" == 0 ]]; then "$here/delete.sh" "$@"; exit 0; fi
  if [[ "$now" != ACTIVE || "$status" == 75 ]]; then failures=0; sleep "$POLL"; continue; fi  # taken away, or saved on SIGTERM: resume
  failures=$((failures + 1))
  if [[ "$status" == 2 ]] || ((failures >= MAX_FAILURES)); then  # 2: wrong arguments, a retry cannot help
    echo "giving up after $failures failures; the slice is left for inspection (launch/logs.sh, launch/delete.sh)" >&2
    if [[ "$status" =~ ^[0-9]+$ ]]; then exit "$status"; else exit 1; fi
  fi
done
