"""Serving: the target, as an evaluation loads it, behind the chat completions and completions of OpenAI's API.

Everything that can be wrong is said before weights are read, and the port is taken then. It answers once the model is loaded.
"""

import contextlib
import importlib.util
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from dat_jax import settings, sharding
from dat_jax.attacks.victim import BLOCKS
from dat_jax.data.answers import short_name
from dat_jax.models import huggingface
from dat_jax.models.huggingface import Model
from dat_jax.serving.programs import Programs, Prompt
from dat_jax.serving.requests import ALTERNATIVES, Limits
from dat_jax.serving.settings import Serve, read_key
from dat_jax.stations import workdir
from dat_jax.stations.subjects import check_devices, check_sources, load_target

PACKAGES = ("starlette", "uvicorn")
PATIENCE = 3  # seconds that a stopped server gives the answers under way


def run(config: ConfigDict, folder: epath.Path) -> None:
    """Serves until a signal ends it. Raises ValueError naming the key, package or variable that is wrong, before weights are read."""
    serve, key = check(config)
    with listening(serve) as sock:
        sharding.initialize(config.mesh.processes, config.mesh.timeout)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.dcn_data)
        check_devices(config, mesh.devices.flat[0].platform)
        check_batch(config, mesh)
        workdir.keep_programs(folder)
        with jax.set_mesh(mesh):
            model = load_target(config, mesh)
        found = programs(config, model, mesh)
        found.run([Prompt((0,), 1, 0.0, 1.0, 0)])  # compiled now, so that the first request does not wait for it
        serve_forever(found, limits(config, found), serve, key, sock)


def check(config: ConfigDict) -> tuple[Serve, str]:
    """Returns the settings and the key. Raises ValueError for what is known to be wrong without devices and weights."""
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"--mode=serve needs {' and '.join(absent)}, not installed here; pip install 'dat_jax[serve]'")
    serve = settings.read(Serve, config.serve)
    key = read_key(serve, os.environ)
    if config.world.enabled:
        raise ValueError("config.world.enabled is True; allowed: False, with config.target.model = WORKDIR/seed_0/world/target")
    if config.mesh.processes != 1 or config.mesh.dcn_data != 1:
        raise ValueError(
            f"config.mesh.processes is {config.mesh.processes} and dcn_data {config.mesh.dcn_data}; allowed: 1, one process serves"
        )
    check_sources(config)
    source = huggingface.locate(config.target.model)
    tokenizer = huggingface.load_tokenizer(source, huggingface.read_fields(source)["model_type"])
    if tokenizer is None or not tokenizer.is_fast:
        raise ValueError(f"config.target.model: {config.target.model} has no tokenizer.json; allowed: a folder with one")
    return serve, key


def check_batch(config: ConfigDict, mesh: Any) -> None:
    """Raises ValueError where the mesh does not divide a batch."""
    parts, rows = mesh.shape["data"] * mesh.shape["fsdp"], config.evaluation.batch_size
    if rows % parts:
        raise ValueError(f"config.evaluation.batch_size is {rows}; allowed: a multiple of mesh.data x mesh.fsdp = {parts}")


def programs(config: ConfigDict, model: Model, mesh: Any) -> Programs:
    """The model in the shapes of config.data.prompt_length and config.evaluation. ValueError where the model is too short for them."""
    data, evaluation = config.data, config.evaluation
    found = Programs(model, data.prompt_length, evaluation.max_new_tokens, evaluation.batch_size, ALTERNATIVES, mesh)
    if found.longest_prompt < 1:
        raise ValueError(
            f"config.evaluation.max_new_tokens is {evaluation.max_new_tokens}; allowed: less than the {model.config.max_length} positions "
            "that the model was made for"
        )
    return found


def limits(config: ConfigDict, found: Programs) -> Limits:
    """What requests may ask for, with the keys that set it."""
    source, longest = config.target.checkpoint or config.target.model, found.longest_prompt
    made_for = found.model.config.max_length
    hint = f", which is {BLOCKS} times config.data.prompt_length"
    if longest < BLOCKS * found.prompt_length:
        hint = f", which is the {made_for} positions of the model less config.evaluation.max_new_tokens"
    return Limits(
        names=tuple(dict.fromkeys((config.serve.name or short_name(source), source))),
        prompt_tokens=longest,
        new_tokens=found.new_tokens,
        vocabulary=found.model.config.vocab_size,
        answers=config.serve.waiting,
        system=config.data.system,
        prompt_hint=hint,
        new_hint=" (config.evaluation.max_new_tokens)",
    )


@contextlib.contextmanager
def listening(serve: Serve) -> Iterator[socket.socket]:
    """A socket at the address, taken now and closed at the end. ValueError where it cannot be had."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"config.serve.host is {serve.host!r}: {error.strerror}; allowed: an address of this machine") from error
    if serve.is_loopback and not ipaddress.ip_address(str(address[0])).is_loopback:
        raise ValueError(f"config.serve.host is {serve.host!r}, which is {address[0]} here; allowed: 127.0.0.1")
    with socket.socket(family, kind, number) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise ValueError(
                f"config.serve.host and port are {serve.host!r} and {serve.port}: {error.strerror}; allowed: an address of this machine "
                "and a free port (0: any)"
            ) from error
        yield sock


def serve_forever(found: Programs, limits: Limits, serve: Serve, key: str, sock: socket.socket) -> None:
    """Answers requests until a signal comes, in the main thread, or the server is told to exit."""
    server = made(found, limits, serve, key)
    host, port = sock.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    logging.info(
        "serve: %s at http://%s:%d/v1%s; prompts of %d tokens, answers of %d at most, %d at a time",
        limits.names[0], name, port, ", with the key" if key else "", limits.prompt_tokens, limits.new_tokens, found.batch_size,
    )  # fmt: skip
    server.run(sockets=[sock])


def made(found: Programs, limits: Limits, serve: Serve, key: str) -> Any:
    """Returns uvicorn's server of a model."""
    import uvicorn  # an extra: `check` says so where it is absent

    from dat_jax.serving.app import application, service

    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # the lines are ours, and hold no address and no path
    app = application(service(found, limits, serve, key))
    return uvicorn.Server(
        uvicorn.Config(
            app, http="h11", loop="asyncio", ws="none", lifespan="off", interface="asgi3", access_log=False, log_config=None,
            server_header=False, timeout_graceful_shutdown=PATIENCE,
        )
    )  # fmt: skip
