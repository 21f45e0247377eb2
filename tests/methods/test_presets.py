"""What each method's published code trains with, written out once more, against the presets."""

import pytest

from dat_jax import presets
from dat_jax.compilation import table
from dat_jax.config import defaults, validate
from dat_jax.settings import dotted

ATTACK = {"steps": 10, "sites": (0,), "absolute_radius": False, "narrowest": 1.0, "step_size": 0.0001, "absolute": True,
          "optimizer": "sign", "iterate": "last", "rows": 0}  # fmt: skip
ADVERSARIAL_UL = {"away_weight": 0.5, "toward_weight": 0.5, "utility_weight": 1.0, "away_cutoff": 5.0, "toward_cutoff": 0.5, "slope": 0.001,
                  "away": "nll", "retention": "nll", "cutoff_over": "batch"}  # fmt: skip
HYDRA = {"learning_rate": 0.0002, "weight_decay": 0.001, "clip": 0.3, "warmup": 0.0, "final_learning_rate": 0.0, "optimizer": "adamw",
         "lora.rank": 64, "lora.alpha": 16.0, "lora.dropout": 0.1}  # fmt: skip
LAT = {"perturbation.steps": 16, "perturbation.sites": (0, 9, 17, 25, 31), "perturbation.radius": 6.0, "perturbation.absolute_radius": True,
       "perturbation.absolute": True, "perturbation.optimizer": "adam", "perturbation.iterate": "last", "perturbation.narrowest": 1.0,
       "adversary_toward": 0.5, "adversary_away": 0.5, "updates": 4, "objective.away_weight": 0.5, "objective.toward_weight": 0.5,
       "objective.away": "log_1_minus_p", "objective.away_cutoff": 5.0, "objective.toward_cutoff": 0.0}  # fmt: skip
OF_LAT = {"steps": 100, "clip": 1.0, "optimizer": "adamw", "warmup": 0.0, "final_learning_rate": 1.0, "lora.rank": 64,
          "lora.alpha": 8.0, "lora.dropout": 0.0}  # fmt: skip
RERO = {"steps": 150, "optimizer": "adamw", "learning_rate": 0.0001, "warmup": 0.0, "final_learning_rate": 1.0, "lora.rank": 16,
        "lora.alpha": 16.0, "lora.dropout": 0.05}  # fmt: skip


def data(adversarial, utility, prompt, response, **more):
    return {"adversarial_rows": adversarial, "utility_rows": utility, "prompt_length": prompt, "response_length": response, **more}


# preset: (method, its keys, keys of training, keys of data)
PUBLISHED = {
    "cat": (  # adv_train_ul.yaml: 5 epochs of 1216 micro-batches, 8 to an update, an eighth of the rows adversarial, 256 tokens
        "cat",
        {f"perturbation.{key}": value for key, value in (ATTACK | {"radius": 0.05}).items()}
        | {f"objective.{key}": value for key, value in ADVERSARIAL_UL.items()}
        | {"perturbed": 1.0, "held": 0.0},
        HYDRA | {"steps": 5 * 1216 // 8},
        data(8, 56, 128, 128, perturb="all"),
    ),
    "capo": (  # adv_train_ipo.yaml: no utility data, 128 tokens
        "capo",
        {f"perturbation.{key}": value for key, value in (ATTACK | {"radius": 0.05}).items()}
        | {"beta": 0.25, "preference_weight": 1.0, "utility_weight": 0.0, "away_cutoff": 5.0},
        HYDRA | {"steps": 360},
        data(64, 8, 64, 64, perturb="all"),
    ),
    "mixat": (  # Llama3_MixAT.yaml: 2 epochs, radius 0.075, uniform50
        "mixat",
        {f"perturbation.{key}": value for key, value in (ATTACK | {"radius": 0.075}).items()}
        | {f"objective.{key}": value for key, value in ADVERSARIAL_UL.items()}
        | {"perturbed": 1.0, "held": 0.0, "share": 0.5},
        HYDRA | {"steps": 2 * 1216 // 8},
        data(8, 56, 128, 128, perturb="all"),
    ),
    "lat_llama2": (
        "lat",
        LAT | {"perturbation.step_size": 0.05, "objective.utility_weight": 1.5, "objective.retention": "nll"},
        OF_LAT | {"learning_rate": 0.00002},
        data(16, 16, 1024, 1024, perturb="all"),
    ),
    "lat_llama3": (
        "lat",
        LAT | {"perturbation.step_size": 0.001, "objective.utility_weight": 0.1, "objective.retention": "reverse_kl"},
        OF_LAT | {"learning_rate": 0.00008},
        data(16, 16, 1024, 1024, perturb="all"),
    ),
    "circuit_breakers_llama3": (  # lorra_circuit_breaker_llama3_8b.sh
        "circuit_breakers", {"layers": (10, 20), "alpha": 10.0, "schedule": 300 / 150}, RERO, data(16, 16, 512, 512)
    ),
    "circuit_breakers_mistral": (
        "circuit_breakers", {"layers": (10, 20), "alpha": 5.0, "schedule": 300 / 150}, RERO, data(16, 16, 512, 512)
    ),
    "r2d2": (  # HarmBench's adversarial_training
        "r2d2",
        {"pool": 180, "tokens": 20, "steps": 5, "candidates": 512, "topk": 256, "reset_every": 50, "reset_share": 0.2,
         "objective.away_weight": 0.5, "objective.toward_weight": 0.5, "objective.utility_weight": 1.0, "objective.away": "log_1_minus_p",
         "objective.away_cutoff": 5.0, "objective.toward_cutoff": 0.0, "objective.retention": "nll"},
        {"steps": 2000, "optimizer": "adamw", "learning_rate": 0.00002, "final_learning_rate": 0.0, "lora.rank": 0},
        {"perturb": "user"},
    ),
    "derta": (  # the README of RobustNLP/DeRTa, full parameters
        "derta",
        {"prefix_weight": 1.0, "transition_weight": 1.0, "utility_weight": 1.0},
        {"optimizer": "adamw", "learning_rate": 0.00002, "weight_decay": 0.00002, "warmup": 0.03, "final_learning_rate": 0.0,
         "lora.rank": 0},
        {"prompt_length": 512, "response_length": 512},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_preset_has_the_published_numbers_and_touches_nothing_else(name):
    """From settings that are nowhere the published ones, so that no default can stand in for a number."""
    method, own, training, rows = PUBLISHED[name]
    if "steps" in training:
        training = training | {"flops": 0.0}
    groups = {f"methods.{method}": own, "training": training, "data": rows}
    wanted = {f"{group}.{key}": value for group, keys in groups.items() for key, value in keys.items()}
    config = defaults()
    for key, value in wanted.items():
        other = not value if isinstance(value, bool) else () if isinstance(value, tuple) else type(value)()
        config.update_from_flattened_dict({key: other if other != value else type(value)(1)})
    config.training.methods = (method,)
    before = dict(dotted(config))
    assert presets.reference(config, name) is config
    after = dict(dotted(config))
    assert {key: after[key] for key in wanted} == wanted
    assert {key for key in after if after[key] != before[key]} == set(wanted)


@pytest.mark.parametrize("name", presets.REFERENCES)
def test_a_preset_is_a_configuration_without_fault(name):
    config = defaults()
    config.training.methods = ("undefended", PUBLISHED[name][0])
    presets.reference(config, name)
    config.target.model = "m"
    config.data.update({"behaviors": "b", "chats": "c"})
    validate(config)


def test_a_name_that_there_is_not():
    with pytest.raises(ValueError, match=r"^presets\.reference: lat_llama: no such key; did you mean presets\.reference: lat_llama"):
        presets.reference(defaults(), "lat_llama")


def test_a_preset_of_another_method_than_the_runs():
    config = defaults()
    config.training.methods = ("undefended", "dat_circuit_breakers")
    before = dict(dotted(config))
    message = r"^config\.training\.methods is \('undefended', 'dat_circuit_breakers'\), .* lat_llama3 .* with it: lat or dat_lat, "
    with pytest.raises(ValueError, match=message):
        presets.reference(config, "lat_llama3")
    assert dict(dotted(config)) == before
    presets.reference(config, "circuit_breakers_mistral")
    assert config.methods.circuit_breakers.alpha == 5.0


def test_the_papers_settings():
    """arXiv 2602.15238, appendix B, DAT's column. docs/method.md names what CAT's column has, which is trained with DAT's here."""
    c = presets.paper("meta-llama/Meta-Llama-3-8B-Instruct")
    assert (c.training.learning_rate, c.data.adversarial_rows, c.methods.cat.objective.utility_weight) == (1e-4, 8, 0.45)
    assert (c.sampler.samples, c.sampler.keep, c.sampler.model) == (1000, 16, "GSAI-ML/LLaDA-8B-Base")
    assert {group.dtype for group in (c.target, c.sampler)} == {group.compute_dtype for group in (c.target, c.sampler)} == {"bfloat16"}


def test_lat_is_compiled_for_llama_3_as_its_code_trains_llama_3():
    (run,) = [run for run in table.RUNS if run.changes.get("training.methods") == ("lat",)]
    assert "llama3" in run.path
    config, published = defaults(), defaults()
    config.update_from_flattened_dict(run.changes)
    published.training.methods = ("lat",)
    assert dict(dotted(config.methods.lat)) == dict(dotted(presets.reference(published, "lat_llama3").methods.lat))
