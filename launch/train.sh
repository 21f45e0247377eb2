#!/usr/bin/env bash
# Starts a run on every worker and returns; launch/logs.sh shows it. The same command resumes a run. Settings: launch/env.sh.
#   launch/train.sh --workdir=gs://bucket/run [--config=configs/gemma_tpu.py] [--mode=train] [--config.KEY=VALUE ...] [--dry-run]
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname "$0")/env.sh" "$@"
need_workdir

printf -v arguments '%q ' "--config=$CONFIG" "--workdir=$WORKDIR" "--config.mesh.processes=$HOSTS" ${ARGS[@]+"${ARGS[@]}"}
printf -v settings '%q ' "GENERATION=$GENERATION" "LIBTPU_FLAGS=$LIBTPU_FLAGS"
# setsid and closed streams: ssh returns at once, and --worker=all would hold back all output until the end anyway.
start="env ${settings}setsid ~/dat_jax/launch/worker.sh $arguments< /dev/null > /dev/null 2>&1 &"
if [[ -z "$HF_TOKEN" ]]; then workers "$start"; exit; fi
# The token goes by stdin, which --worker=all does not hand on: command lines are seen by everybody on both machines and end up in logs.
starting=()
for node in "${NODES[@]}"; do
  for ((worker = 0; worker < HOSTS / SLICES; worker++)); do
    tpu tpu-vm ssh "$node" "--worker=$worker" --command="IFS= read -r HF_TOKEN && export HF_TOKEN && { $start }" < <(printf '%s\n' "$HF_TOKEN") &
    starting+=($!)
  done
done
for one in "${starting[@]}"; do wait "$one"; done
