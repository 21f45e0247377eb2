"""Two processes load their shards of one folder and write it again together."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dat_jax import models
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model

PROGRAM = """
import sys, jax
rank, port, source, target = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank, initialization_timeout=120)
from dat_jax import models, sharding
model = models.load(source, mesh=sharding.make_mesh(1, 2, 1))
assert not model.params["layers"]["q"].is_fully_addressable
models.save(model, target, shard_bytes=4000)
from dat_jax.models import lora
from dat_jax.models.adapters import save_adapter
save_adapter(lora.initialize(jax.random.key(0), model.config, 2, 4.0), model.config, target + "-adapter", source)
print("held", sum(shard.data.size for leaf in jax.tree.leaves(model.params) for shard in leaf.addressable_shards))
"""


@pytest.mark.slow
def test_two_processes_read_their_shards_and_write_one_folder(tmp_path):
    config = ModelConfig(vocab_size=64, width=16, layers=2, heads=4, kv_heads=2)
    made = Model(weights.initialize(jax.random.key(0), config), config, None)
    models.save(made, str(tmp_path / "made"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = pathlib.Path(models.__file__).parents[2]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    arguments = [str(port), str(tmp_path / "made"), str(tmp_path / "again")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    running = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), *arguments], **pipes) for rank in range(2)]
    for process in running:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        total = sum(leaf.size for leaf in jax.tree.leaves(made.params))
        assert int(output.split()[-1]) < 0.6 * total  # only norms are held by both
    before = load_file(tmp_path / "made" / "model.safetensors")
    after = {}
    for path in (tmp_path / "again").glob("*.safetensors"):
        after |= load_file(path)
    assert before.keys() == after.keys()
    assert all(np.array_equal(tensor, after[name]) for name, tensor in before.items())
    assert len(load_file(tmp_path / "again-adapter" / "adapter_model.safetensors")) == 2 * 2 * 7
