"""The report station: reads what the other stations left in a work directory and writes the report, and other tools' formats."""

import logging
from collections.abc import Sequence

from etils import epath

from dat_jax.report import formats, write


def run(workdir: epath.Path, others: Sequence[str] = ()) -> None:
    """Writes the report and says where it is and the numbers that matter. No model and none of the run's files are needed.

    others: names of further formats that the answers are written in, config.report.formats.
    """
    page = write(workdir, logging.info)
    logging.info("report: %s", page)
    formats.write(workdir, others, logging.info)
