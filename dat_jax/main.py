"""Flags and dispatch: `python -m dat_jax.main --config=configs/quickstart.py [--workdir=DIR] [--mode=MODE] [--config.KEY=VALUE ...]`.

Kept short on purpose: what the modes do lives in `dat_jax.stations`, where tests and notebooks can import it. A wrong file, key or value
ends with one line and exit status 2 before anything is compiled; one that is told to stop (SIGINT, SIGTERM) ends with one
line and status 75; killed or stopped, the same command goes on.
"""

import logging
import os
import sys

from dat_jax import platform, signals

if __name__ == "__main__":
    signals.listen()  # now: the imports below take seconds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own chatter; read before jax loads it
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is not there: it is not needed
os.environ.update(platform.environment())

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from dat_jax import config as config_lib
from dat_jax import serving

_CONFIG = config_flags.DEFINE_config_file("config", None, "a file of configs/, or your own", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder or gs:// address of everything the run writes; runs/ and the config's name if not given"
)
_MODE = flags.DEFINE_string(
    "mode", "all", "all, a station of the way or several with commas between, as in evaluate,judge,report; or compile, or serve"
)


def main(argv: list[str]) -> int:
    """Runs a mode and returns the exit status."""
    from dat_jax import stations  # after the flags are known to be right: it takes seconds to import
    from dat_jax.data import files
    from dat_jax.stations import workdir as workdirs

    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --mode=train or --config.training.steps=100", 2)
    if _CONFIG.value is None:
        raise app.UsageError("give --config=configs/NAME.py", 2)
    show_progress()
    workdir = _WORKDIR.value or workdirs.default(config_flags.get_config_filename(flags.FLAGS["config"]))
    logging.info("workdir: %s", workdir)
    if os.environ.get("JAX_PLATFORMS") == "cpu" and platform.has_gpu() and not platform.has_plugin():
        logging.warning("the CPU is used although an NVIDIA GPU is there: jax's plugin for it is missing (pip install 'dat_jax[cuda]')")
    try:
        config_lib.split_lists(_CONFIG.value)
        config_lib.validate(_CONFIG.value, data=_MODE.value != "serve")
        with files.bucket_faults(workdir):
            return stations.run(_MODE.value, _CONFIG.value, workdir)
    except ValueError as error:
        logging.debug("where it came from", exc_info=True)
        print(f"dat_jax: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        logging.debug("where it came from", exc_info=True)
        place = f"{error.filename}: " if error.filename else ""
        print(
            f"dat_jax: {place}{error.strerror or error}; when that is mended, the same command goes on from what is saved", file=sys.stderr
        )
        return 1  # not the user's: it may be gone at the next try, which launch/supervise.sh makes


def show_progress() -> None:
    """Shows our own lines with the time of day; Orbax (through absl's logger) and the bucket's clients are heard from warnings on."""
    absl_logging.set_verbosity(absl_logging.INFO)
    for name in ("absl", "fsspec", "gcsfs", "jax"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger().setLevel(logging.INFO)
    absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line after checking it for unknown config keys and a missing config file; serving needs no file."""
    argv = [argv[0], *serving.with_config(argv[1:])]
    try:
        config_lib.check_arguments(argv[1:])
        return flags.FLAGS([argv[0], *config_lib.quoted(argv[1:])])
    except (ValueError, flags.Error) as error:
        print(f"dat_jax: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(signals.ended(main), flags_parser=parse_flags)
