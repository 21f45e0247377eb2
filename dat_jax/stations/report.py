"""The report station: reads what the other stations left in a work directory and writes results.json, report.md and report.html."""

import logging

from etils import epath

from dat_jax.report import write


def run(workdir: epath.Path) -> None:
    """Writes the report and says where it is and the numbers that matter. No model and no configuration are needed."""
    page = write(workdir, logging.info)
    logging.info("report: %s", page)
