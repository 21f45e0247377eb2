"""What a user brings, once for all tests of the stations."""

import pytest


@pytest.fixture(scope="session")
def brought(tiny_job, tmp_path_factory):
    """A folder with everything that the tiny job reads."""
    folder = tmp_path_factory.mktemp("brought")
    tiny_job.bring(folder)
    return folder


@pytest.fixture
def config(tiny_job, brought):
    """The tiny job's configuration."""
    return tiny_job.get_config(brought)
