"""The command line as a user meets it: one clear line and status 2, before jax compiles anything."""

import os
import subprocess
import sys

import pytest

from dat_jax.config import defaults, dotted, split_lists, validate

QUICK = "--config=configs/quickstart.py"


def call(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "dat_jax.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=configs/quickstrat.py"], "configs/quickstrat.py: no such file; did you mean configs/quickstart.py?"),
        ([QUICK, "--config.attack.step=20"], "--config.attack.step: no such key; did you mean --config.attack.steps?"),
        ([QUICK, "--config.atack.steps=20"], "did you mean --config.attack.steps?"),
        ([QUICK, "--workdir=w", "--config.attack.radius=-1"], "config.attack.radius is -1.0; allowed: a number >= 0"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message):
    done = call(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "key, value",
    [
        ("objective.away_weight", -1.0),
        ("attack.radius", -0.1),
        ("attack.optimizer", "sgd"),
        ("training.learning_rate", 0.0),
        ("training.steps", 0),
        ("training.lora.rank", -1),
        ("data.perturb", "everything"),
        ("data.prompt_length", 0),
        ("methods", ("cta",)),
        ("seeds", ()),
        ("target.dtype", "float16"),
        ("sampler.keep", 0),
        ("evaluation.batch_size", 0),
        ("evaluation.attack.radius", -1.0),
    ],
)
def test_a_bad_value_names_its_key(key, value):
    config = defaults()
    for group in ("target", "sampler"):
        config[group].model = "m"
    config.data.update({"behaviors": "b", "targets": "t", "chats": "c"})
    validate(config)
    *groups, name = key.split(".")
    at = config
    for group in groups:
        at = at[group]
    at[name] = value
    with pytest.raises(ValueError, match=rf"config\.{key} is "):
        validate(config)


def test_words_with_commas_between_them_are_a_list():
    config = defaults()
    config.methods, config.evaluation.forms = ("cat,dat",), ("past, german", "story")  # as the flags read --config.methods=cat,dat
    split_lists(config)
    assert config.methods == ("cat", "dat") and config.evaluation.forms == ("past", "german", "story") and config.seeds == (0,)


def test_every_key_has_one_default():
    keys = [key for key, _ in dotted(defaults())]
    assert len(keys) == len(set(keys)) and "training.lora.rank" in keys
