"""The schema: every bad value named by its key, lists from the command line, and rows of the tables that appear in it by themselves."""

import dataclasses
import pathlib
import runpy

import pytest

from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Attack
from dat_jax.config import check_arguments, defaults, quoted, split_lists, validate
from dat_jax.judges import JUDGES
from dat_jax.judges.judge import Judge
from dat_jax.methods import METHODS
from dat_jax.methods.method import Method
from dat_jax.settings import check, dotted


def changed(config, key, value):
    """Sets a dotted key."""
    *groups, name = key.split(".")
    at = config
    for group in groups:
        at = at[group]
    at[name] = value
    return config


@pytest.fixture
def config():
    """A configuration without fault."""
    config = defaults()
    for group in ("target", "sampler"):
        config[group].model = "m"
    config.data.update({"behaviors": "b", "targets": "t", "chats": "c"})
    validate(config)
    return config


@pytest.mark.parametrize(
    "key, value",
    [
        ("methods.cat.objective.away_weight", -1.0),
        ("methods.cat.objective.slope", float("nan")),
        ("methods.cat.perturbation.radius", float("inf")),
        ("training.learning_rate", float("nan")),
        ("training.clip", float("inf")),
        ("training.watch_every", -1),
        ("training.watch_prompts", 0),
        ("training.collapse", 1.5),
        ("training.lora.alpha", 0.0),
        ("training.methods", ("cat", "cat")),
        ("evaluation.attacks", ("direct", "direct")),
        ("evaluation.temperature", float("nan")),
        ("attacks.embedding.radii", (0.1, float("nan"))),
        ("attacks.prefill.lengths", (1, 1)),
        ("sampler.prompt_tokens", (4,)),
        ("sampler.prompt_tokens", (4, 8, 16)),
        ("sampler.prompt_tokens", ("a", "b")),
        ("sampler.temperature", float("inf")),
        ("data.max_chats", -5),
        ("seeds", (1, 1)),
        ("seeds", (1.5,)),
        ("seeds", (True,)),
        ("methods.cat.objective.cutoff_over", "row"),
        ("methods.cat.perturbation.radius", -0.1),
        ("methods.cat.perturbation.optimizer", "sgd"),
        ("training.methods", ("cta",)),
        ("training.learning_rate", 0.0),
        ("training.steps", 0),
        ("training.lora.rank", -1),
        ("training.micro_batch", 3),
        ("data.perturb", "everything"),
        ("data.prompt_length", 0),
        ("data.behaviors", ""),
        ("data.chats", ""),
        ("seeds", ()),
        ("target.dtype", "float16"),
        ("target.model", ""),
        ("sampler.keep", 0),
        ("sampler.model", ""),
        ("sampler.judge", "llama"),
        ("world.target.steps", 0),
        ("evaluation.attacks", ("direkt",)),
        ("evaluation.attacks", ()),
        ("evaluation.judges", ("llama",)),
        ("evaluation.judges", ()),
        ("evaluation.behaviors", -1),
        ("evaluation.utility_prompts", -1),
        ("evaluation.max_new_tokens", 0),
        ("evaluation.batch_size", 0),
        ("evaluation.temperature", -1.0),
        ("attacks.best_of_n.attempts", 0),
        ("attacks.best_of_n.sigma", 0.0),
        ("attacks.prefill.words", 0),
        ("attacks.embedding.perturbation.radius", -1.0),
    ],
)
def test_a_bad_value_names_its_key(config, key, value):
    with pytest.raises(ValueError, match=rf"config\.{key} is "):
        validate(changed(config, key, value))


def test_what_is_needed_depends_on_what_is_trained(config):
    config.training.methods, config.sampler.model = ("undefended", "cat"), ""
    validate(config)  # CAT samples nothing
    config.training.methods = ()
    config.data.update({"behaviors": "", "chats": "", "eval_behaviors": "e"})
    validate(config)
    with pytest.raises(ValueError, match=r"config\.data\.eval_behaviors is ''; allowed: a path"):
        validate(changed(config, "data.eval_behaviors", ""))


def test_sizes_of_a_micro_batch_divide_both_kinds_of_rows(config):
    config.data.update({"adversarial_rows": 8, "utility_rows": 56})
    for size in (0, 64, 32, 16, 8):
        validate(changed(config, "training.micro_batch", size))
    message = r"config\.training\.micro_batch is 24; allowed: 0, or so many of the batch's 8 \+ 56 rows: 64, 32, 16, 8"
    with pytest.raises(ValueError, match=message):
        validate(changed(config, "training.micro_batch", 24))
    config.data.update({"adversarial_rows": 6, "utility_rows": 4})
    with pytest.raises(ValueError, match=r"of the batch's 6 \+ 4 rows: 10, 5$"):
        validate(config)


def test_words_with_commas_between_them_are_a_list():
    config = defaults()
    config.training.methods = ("cat,dat",)  # as the flags read --config.training.methods=cat,dat
    config.evaluation.forms = ("past, german", "story")
    split_lists(config)
    assert config.training.methods == ("cat", "dat") and config.evaluation.forms == ("past", "german", "story") and config.seeds == (0,)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("a=runs/x/seed_0/cat, gs://bucket/b", "('a=runs/x/seed_0/cat', 'gs://bucket/b')"),
        ("one/folder", "one/folder"),
        ("('a/b','c/d')", "('a/b','c/d')"),
        ("'a/b','c/d'", "'a/b','c/d'"),
    ],
)
def test_paths_with_commas_between_them_need_no_quotes(value, read):
    assert quoted(["--config.seeds=21,", "--config.seeds=0, 1,"]) == ["--config.seeds=21", "--config.seeds=0,1"]
    assert quoted(["--config.training.methods=cat,"]) == ["--config.training.methods=('cat',)"]
    others = ["--config=configs/evaluate.py", "--config.seeds=0,1", "--config.data.behaviors=a/b,c/d", "--workdir=x,y/z"]
    assert quoted([*others, f"--config.evaluation.compare={value}"]) == [*others, f"--config.evaluation.compare={read}"]


def test_every_key_has_one_default():
    keys = [key for key, _ in dotted(defaults())]
    assert len(keys) == len(set(keys)) and {"training.lora.rank", "methods.cat.perturbation.steps", "attacks.best_of_n.sigma"} <= set(keys)


@pytest.mark.parametrize(
    ("argument", "near"),
    [
        ("--config.methods.cat.perturbation.step=1", "methods.cat.perturbation.steps"),
        ("--config.attack.best_of_n.attempts=1", "attacks.best_of_n.attempts"),
        ("--config.evaluation.judge=world", "evaluation.judges"),
        ("--config.training.microbatch=1", "training.micro_batch"),
    ],
)
def test_a_misspelt_key_is_told_the_nearest_one(argument, near):
    with pytest.raises(ValueError) as caught:
        check_arguments([argument])
    assert str(caught.value) == f"{argument.split('=')[0]}: no such key; did you mean --config.{near}?"
    check_arguments([f"--config.{near}=1"])


@dataclasses.dataclass(frozen=True)
class Mine:
    """Settings of a row of one's own."""

    strength: float = 0.5

    def validate(self, key):
        """Raises ValueError."""
        check(self, key, {"strength": (self.strength > 0, "a number > 0")})


@pytest.mark.parametrize(
    ("group", "table", "row", "selection"),
    [
        ("methods", METHODS, Method("mine", "Mine", prompts="requests", settings=Mine, loss=print), "training.methods"),
        ("attacks", ATTACKS, Attack("mine", "Mine", "text", print, settings=Mine), "evaluation.attacks"),
        ("judges", JUDGES, Judge("mine", "Mine", "Mine.", print, settings=Mine), "evaluation.judges"),
    ],
)
def test_a_row_of_a_table_is_all_that_the_schema_needs(group, table, row, selection, config, monkeypatch):
    with pytest.raises(ValueError, match=rf"config\.{selection} is "):
        validate(changed(config, selection, ("mine",)))
    monkeypatch.setitem(table, "mine", row)
    fresh = defaults()
    assert fresh[group].mine.to_dict() == {"strength": 0.5} and row.read_settings(fresh) == Mine()
    fresh.target.model = fresh.sampler.model = "m"
    fresh.data.update({"behaviors": "b", "chats": "c"})
    validate(changed(fresh, selection, ("mine",)))
    check_arguments([f"--config.{group}.mine.strength=2"])
    with pytest.raises(
        ValueError, match=rf"--config\.{group}\.mine\.strenth: no such key; did you mean --config\.{group}\.mine\.strength\?"
    ):
        check_arguments([f"--config.{group}.mine.strenth=2"])
    with pytest.raises(ValueError, match=rf"config\.{group}\.mine\.strength is 0\.0; allowed: a number > 0"):
        validate(changed(fresh, f"{group}.mine.strength", 0.0))


def test_a_key_that_the_schema_does_not_have_is_named_with_the_nearest(config):
    """A config file's groups are not locked: without the check a misspelt key changes nothing and says nothing."""
    config.training.stepz = 1
    with pytest.raises(ValueError, match=r"config\.training\.stepz: no such key; did you mean config\.training\.steps\?"):
        validate(config)
    del config.training.stepz
    del config.training.steps
    with pytest.raises(ValueError, match=r"config\.training\.steps is missing; its default is 760"):
        validate(config)


def test_the_system_prompt_is_a_text_or_none(config):
    assert config.data.system is None
    config.data.system = "Be brief."
    validate(config)
    with pytest.raises(TypeError):
        config.data.system = 3


def test_the_quickstart_of_0_1_0_keeps_its_settings_whatever_the_quickstart_becomes():
    """The values of release 0.1.0's configs/quickstart.py, under today's keys; a new lever of the quickstart must be taken back there."""
    made = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "quickstart_0_1.py"))["get_config"]()
    validate(made)
    given = {
        "sampler": {"samples": 48, "keep": 16, "prompt_tokens": (6, 11), "response_tokens": 10, "steps": 11, "batch_size": 96,
                    "likelihood_samples": 8, "selection": "stratified", "add_requests": True},
        "utility": {"samples": 0},
        "training": {"steps": 300, "learning_rate": 1.5e-3, "clip": 1.0, "save_every": 50, "watch_every": 50, "lora.rank": 0},
        "methods": {
            "cat.perturbation.steps": 8, "cat.perturbation.radius": 0.3, "cat.perturbation.step_size": 0.25,
            "cat.perturbation.iterate": "best", "cat.objective.toward_cutoff": 0.02, "cat.objective.cutoff_over": "token",
            "cat.objective.away_cutoff": 2.0, "cat.objective.utility_weight": 2.0,
        },
    }  # fmt: skip
    for group, values in given.items():
        found, usual = dict(dotted(made[group])), dict(dotted(defaults()[group]))
        keys = usual if group != "methods" else {key for key in usual if key.startswith("cat.")}
        assert {key: found[key] for key in keys} == {key: values.get(key, usual[key]) for key in keys}
