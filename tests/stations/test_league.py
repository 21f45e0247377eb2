"""The league: its config file, what contradicts it, and two methods and two seeds of it from a budget of operations to the table."""

import json
import pathlib
import runpy

import pytest

from dat_jax import stations, world
from dat_jax.config import validate
from dat_jax.methods import METHODS
from dat_jax.settings import dotted
from dat_jax.stations.inputs import check_files, check_training

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "league.py"


@pytest.fixture
def league():
    return runpy.run_path(str(CONFIG))["get_config"]()


def test_every_method_is_in_the_league_and_fits_the_world(league):
    assert league.training.methods == tuple(METHODS)
    validate(league)
    check_files(league)
    check_training(league, world.target_config(league.world))


def test_the_best_combination_is_the_quickstarts_dat():
    best, quickstart = (runpy.run_path(str(CONFIG.with_name(f"{name}.py")))["get_config"]() for name in ("best", "quickstart"))
    found, before = dict(dotted(best)), dict(dotted(quickstart))
    assert {key for key in found if found[key] != before[key]} == {"training.methods"}
    validate(best)
    check_training(best, world.target_config(best.world))


def test_the_budget_that_the_file_names_is_that_of_cats_steps(league):
    model = world.target_config(league.world)
    budget = float(CONFIG.read_text().split("--config.training.flops=")[1].split()[0])
    league.training.flops = budget
    assert METHODS["cat"].steps(model, league) == league.training.steps == 300


def test_a_change_of_cats_settings_reaches_every_method_that_has_them_and_no_other_change_reaches_cat(league):
    """As the command line sets them: on the loaded file."""
    methods = league.methods
    followers = {name: methods[name] for name in ("mixat", "self_consistency", "capo", "lat")}
    methods.cat.perturbation.steps, methods.cat.held, methods.cat.objective.away_weight = 8, 0.25, 0.75
    weighed = [methods.cat.objective, *(methods[name].objective for name in ("mixat", "lat", "r2d2", "self_consistency"))]
    weighed += [methods.capo, methods.derta]
    assert {group.utility_weight for group in weighed} == {1.0}
    methods.cat.objective.utility_weight = 0.5
    assert {group.utility_weight for group in weighed} == {0.5}
    for name, group in followers.items():
        apart = {"absolute_radius", "sites"} if name == "lat" else set()
        same = {key: value for key, value in group.perturbation.items() if key not in apart}
        assert same == {key: value for key, value in methods.cat.perturbation.items() if key not in apart}, name
    assert methods.lat.perturbation.steps == 8 and methods.lat.perturbation.sites == (0, 2)
    assert methods.mixat.held == methods.self_consistency.held == 0.25 and methods.mixat.objective.away_weight == 0.75
    assert methods.self_consistency.objective.away_weight == 0.0
    methods.mixat.perturbation.steps = 3
    assert (methods.mixat.perturbation.steps, methods.cat.perturbation.steps, methods.capo.perturbation.steps) == (3, 8, 8)
    validate(league)
    assert league.copy_and_resolve_references().methods.capo.perturbation.steps == 8


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.perturb", "all", "config.data.perturb is 'all'; allowed: user: r2d2 writes behind the user's words"),
        ("training.lora.rank", 8, "config.training.optimizer is 'muon'; allowed: adamw with training.lora.rank = 8"),
        ("training.flops", 1e9, "config.training.flops is 1e+09; allowed: 0, or 6.428e+09 (one step of refusal_sft) up to "),
        ("methods.circuit_breakers.layers", (2, 5), "config.methods.circuit_breakers.layers names site 5; allowed for a model of 4 layers"),
        ("methods.lat.perturbation.sites", (0, 4), "config.methods.lat.perturbation.sites names site 4; allowed for a model of 4 layers"),
        ("methods.r2d2.candidates", 20, "config.methods.r2d2.batch_size is 16; allowed: a divisor of candidates = 20"),
        ("target.model", "mine", "config.target.model is 'mine'; allowed: '' with config.world.enabled = True"),
        ("data.train_rewrites", "mine.jsonl", "config.data.train_rewrites is 'mine.jsonl'; allowed: '' with config.world.enabled = True"),
        ("data.heldout_chats", "nowhere.jsonl", "1 file is not there; bring what is missing, or set its key to where it is:\n"
         "  nowhere.jsonl  (config.data.heldout_chats): chats that nothing was trained on"),
    ],
)  # fmt: skip
def test_an_override_that_contradicts_the_preset_is_one_error_before_a_world_is_built(league, key, value, message):
    league.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError) as caught:
        validate(league)
        check_files(league)
        check_training(league, world.target_config(league.world))
    assert str(caught.value).startswith(message)


@pytest.mark.slow
def test_two_methods_and_two_seeds_from_a_budget_to_the_table(league, config, tmp_path):
    """The tiny job with the league's settings of methods; R2D2 gets fewer steps than refusal tuning."""
    config.seeds, config.training.methods, config.methods = (0, 1), ("undefended", "refusal_sft", "r2d2"), league.methods
    config.evaluation.attacks, config.training.watch_every = ("direct",), 0
    config.training.flops = 5e8
    validate(config)
    assert stations.run("train,evaluate,judge,report", config, str(tmp_path)) == 0
    steps = {}
    for name in ("refusal_sft", "r2d2"):
        for seed in (0, 1):
            end = json.loads((tmp_path / f"seed_{seed}" / name / "finished.json").read_text())
            plan = json.loads((tmp_path / f"seed_{seed}" / name / "plan.json").read_text())
            steps[name] = end["steps"]
            assert plan["steps"] == end["steps"] and 2.5e8 < end["flops"] <= 5e8
    assert steps["refusal_sft"] > steps["r2d2"] >= 1
    text = (tmp_path / "report.md").read_text()
    (head,) = [line for line in text.splitlines() if "TFLOP per step" in line]
    assert "Worst case over text attacks" in head and "over-refusal" in head
    lines = [line for line in text.splitlines() if line.count("|") == head.count("|")]
    rows = [line for line in lines if line.startswith(("| Refusal SFT |", "| R2D2 |", "| Undefended |"))]
    assert len(rows) >= 3 and all(" [" in row for row in rows)
