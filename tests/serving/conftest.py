"""A server of the small model at an address of this machine."""

import contextlib
import dataclasses
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.models import huggingface


@pytest.fixture(scope="session")
def small_model(small_model):
    """The small model with logits of 0 for control tokens: greedy answers are words, up to their longest."""
    head_DxV = np.array(small_model.params["head"])
    head_DxV[:, small_model.tokenizer.all_special_ids] = 0.0
    head_DxV[:, small_model.tokenizer.convert_tokens_to_ids(["<user>", "<assistant>"])] = 0.0
    return dataclasses.replace(small_model, params=small_model.params | {"head": jnp.asarray(head_DxV)})


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory):
    """The small model as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("served") / "model"
    huggingface.save(dataclasses.replace(small_model, source=""), str(path))
    return path


@pytest.fixture(scope="session")
def in_a_thread():
    """in_a_thread(uvicorn's server) -> a block in which it answers, with its address."""

    @contextlib.contextmanager
    def run(server):
        from dat_jax.serving.settings import Serve
        from dat_jax.stations.serve import listening

        with listening(Serve(port=0)) as sock:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
            server.should_exit = True
            thread.join()

    return run
