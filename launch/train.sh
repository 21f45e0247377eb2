#!/usr/bin/env bash
# Starts a run on every worker and returns; launch/logs.sh shows it. The same command resumes a run. Settings: launch/env.sh.
#   launch/train.sh --workdir=gs://bucket/run [--config=configs/gemma_tpu.py] [--mode=train] [--config.KEY=VALUE ...] [--dry-run]
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname "$0")/env.sh" "$@"
need_workdir

if ((DRY_RUN)); then HF_TOKEN=${HF_TOKEN:+hidden}; fi
printf -v arguments '%q ' "--config=$CONFIG" "--workdir=$WORKDIR" "--config.mesh.processes=$HOSTS" ${ARGS[@]+"${ARGS[@]}"}
printf -v settings '%q ' "GENERATION=$GENERATION" "LIBTPU_FLAGS=$LIBTPU_FLAGS" ${HF_TOKEN:+"HF_TOKEN=$HF_TOKEN"}
# setsid and closed streams: ssh returns at once, and --worker=all would hold back all output until the end anyway.
workers "env ${settings}setsid ~/dat_jax/launch/worker.sh $arguments< /dev/null > /dev/null 2>&1 &"
