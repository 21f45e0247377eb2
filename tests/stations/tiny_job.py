"""The whole job at a size of seconds: what a user brings, in a local folder or a bucket, and as a config file what is done with it.

`--config=tests/stations/tiny_job.py:FOLDER` reads what `bring(FOLDER)` wrote; tests get this module as the fixture `tiny_job`.
"""

import csv
import importlib.util
import io
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
from etils import epath

from dat_jax import models
from dat_jax.config import defaults
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model

VERBS = ("paint", "wash", "fold")
ROOT = pathlib.Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("tiny_job_chat_templates", ROOT / "tests" / "data" / "chat_templates.py")
chat_templates = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chat_templates)


def tokenizer(mask=False):
    template, special, bos, eos, *_ = chat_templates.FAMILIES["zephyr"]
    made = chat_templates.byte_tokenizer(template, special + (["[MASK]"] if mask else []), bos, eos)
    if mask:
        made.mask_token = "[MASK]"
    return made


def write_model(folder, model_type, seed=1):
    words = tokenizer(mask=model_type == "llada")
    config = ModelConfig(
        vocab_size=272, width=16, layers=2, heads=2, model_type=model_type, causal=model_type == "llama", max_length=256,
        mask_token=words.mask_token_id,
    )  # fmt: skip
    models.save(Model(weights.initialize(jax.random.key(seed), config), config, words), str(folder))


def bring(folder):
    """Writes two model folders and behavior, chat and utility files."""
    folder = epath.Path(folder)
    write_model(folder / "target", "llama")
    write_model(folder / "sampler", "llada")
    for name, things in (("train", ("drum", "gate")), ("eval", ("kite",))):
        rows = [(f"{verb.capitalize()} the {thing}", f"{verb}_{thing}") for verb in VERBS for thing in things]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("Behavior", "BehaviorID"), *rows])
        (folder / f"{name}.csv").write_text(text.getvalue())
        (folder / f"{name}.json").write_text(json.dumps({id: f"Sure, {id}" for _, id in rows}))
    chats = [{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(8)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(c) + "\n" for c in chats))
    (folder / "benign.jsonl").write_text("".join(json.dumps({"id": str(i), **c}) + "\n" for i, c in enumerate(chats[:3])))


def get_config(folder):
    """The configuration that reads what was brought to `folder`."""
    c, folder = defaults(), epath.Path(folder)
    c.mesh.fsdp = 1
    c.target.model, c.sampler.model = str(folder / "target"), str(folder / "sampler")
    paths = {"behaviors": "train.csv", "targets": "train.json", "eval_behaviors": "eval.csv", "eval_targets": "eval.json"}
    paths |= {"chats": "chats.jsonl", "benign": "benign.jsonl", "borderline": "benign.jsonl"}
    c.data.update({key: str(folder / name) for key, name in paths.items()})
    c.data.update({"prompt_length": 64, "response_length": 16, "adversarial_rows": 2, "utility_rows": 2})
    c.sampler.update({"samples": 4, "keep": 2, "prompt_tokens": (4, 8), "steps": 4, "batch_size": 4, "likelihood_samples": 2})
    c.training.update({"steps": 3, "save_every": 2, "watch_every": 2, "watch_prompts": 2})
    c.training.lora.rank = 2
    c.methods.cat.perturbation.steps = c.attacks.embedding.perturbation.steps = 1
    c.evaluation.update({"max_new_tokens": 4, "batch_size": 4, "attacks": ("direct", "best_of_n", "prefill", "embedding")})
    c.attacks.best_of_n.attempts = 2
    return c


# dat_jax.main, and the files that a process writes noted in a file named after it.
NOTING = """
import os, pathlib, runpy
from dat_jax.data import files
write, note = files.write_bytes, pathlib.Path(os.environ["TINY_JOB_WRITES"]) / os.environ["JAX_PROCESS_ID"]
def noting(path, data):
    with note.open("a") as file:
        print(path, file=file)
    write(path, data)
files.write_bytes = noting
runpy.run_module("dat_jax.main", run_name="__main__", alter_sys=True)
"""


def loopback(processes, devices):
    """The environment in which so many processes of this machine find each other and share the devices; each adds its JAX_PROCESS_ID."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Several CPU processes talk through gloo, which matches messages by their order alone: XLA's default schedule runs collectives that do
    # not depend on each other side by side, in an order of each process's own, and gloo ends the process ("480 vs 256").
    flags = f"--xla_force_host_platform_device_count={devices // processes} --xla_cpu_enable_concurrency_optimized_scheduler=false"
    flags += " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # compiles in a fraction of the time
    variables = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    return variables | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes), "XLA_FLAGS": flags}


def start(brought, workdir, mode, *arguments, processes=1, devices=1, apart=(), **environment):
    """Starts dat_jax.main in so many processes, which share the devices; returns them. apart: arguments of the last one alone.

    With TINY_JOB_WRITES=FOLDER in the environment each process notes there what it writes.
    """
    variables = os.environ | loopback(processes, devices) | environment
    program = ["-c", NOTING] if "TINY_JOB_WRITES" in environment else ["-m", "dat_jax.main"]
    command = [sys.executable, *program, f"--config={__file__}:{brought}", f"--workdir={workdir}", f"--mode={mode}"]
    command += [f"--config.mesh.processes={processes}", f"--config.mesh.fsdp={devices}", *arguments]
    return [
        subprocess.Popen([*command, *(apart if index == processes - 1 else ())], cwd=ROOT, env=variables | {"JAX_PROCESS_ID": str(index)})
        for index in range(processes)
    ]


def ended(running, seconds=300):
    """The exit statuses; whoever is left after the time is killed."""
    try:
        return [process.wait(timeout=seconds) for process in running]
    finally:
        for process in running:
            process.kill()
