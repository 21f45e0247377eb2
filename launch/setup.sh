#!/usr/bin/env bash
# Copies the committed source to every worker and installs it there with a Python that is new enough.
#   launch/setup.sh [--name=NAME] [--dry-run]
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname "$0")/env.sh" "$@"

root=$(cd "$(dirname "$0")/.." && pwd)
archive=$(mktemp -d)/dat_jax.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
git -C "$root" archive --format=tar.gz --output="$archive" HEAD
for node in "${NODES[@]}"; do
  tpu tpu-vm scp "$archive" "$node:dat_jax.tar.gz" --worker=all
done
# uv brings its own CPython: the image's package manager has nothing newer than 3.10.
# shellcheck disable=SC2088  # ~ is the worker's home
steps=(
  "rm -rf ~/dat_jax && mkdir ~/dat_jax && tar -xzf ~/dat_jax.tar.gz -C ~/dat_jax && cd ~/dat_jax"
  "python3 -m pip install --quiet --user uv"
  "~/.local/bin/uv venv --quiet --clear --python $PYTHON_VERSION ~/dat_jax_venv"
  "~/.local/bin/uv pip install --quiet --python ~/dat_jax_venv/bin/python -e '.[tpu,gcs]'"
  "~/dat_jax_venv/bin/python -c 'import dat_jax, jax, sys; print(sys.version, jax.__version__)'"
)
printf -v joined ' && %s' "${steps[@]}"
workers "${joined# && }"
