"""Attacks: their settings, and what they need."""

import pathlib

from etils import epath

from dat_jax.attacks import ATTACKS
from dat_jax.data.behaviors import Behavior
from dat_jax.models.config import ModelConfig
from dat_jax.settings import fits
from dat_jax.stations import given
from dat_jax.stations.inputs import Inputs
from malformed import Row, configured, put, setting

SETTINGS, NEEDED = "Settings of attacks", "What attacks need"
nan, inf = float("nan"), float("inf")


def needed(changes, message, names):
    """Attacks of these names, with these settings and no file."""

    def run(folder: pathlib.Path) -> None:
        config = configured()
        for key, value in ({"evaluation.attacks": names} | changes).items():
            put(config, key, str(folder / value) if isinstance(value, str) and value.startswith("at/") else value)
        behavior = Behavior("paint", "Paint the drum", ("t",), ("n",))
        given.check(Inputs(config, epath.Path(folder), 0, [], [behavior], [], [], {}))

    return Row(NEEDED, f"{', '.join(names)} with {changes}" if changes else ", ".join(names), run, message)


def sites(name, key, value, message):
    """Sites that a model of two layers lacks."""

    def run(folder: pathlib.Path) -> None:
        config = configured()
        put(config, f"attacks.{key}", value)
        fits(ATTACKS[name].read_settings(config), f"attacks.{ATTACKS[name].key}", ModelConfig(vocab_size=8, width=4, layers=2, heads=2))

    return Row(NEEDED, f"config.attacks.{key} = {value!r}, for a model of two layers", run, message)


ROWS = [
    setting(SETTINGS, "attacks.best_of_n.attempts", 0, 'config.attacks.best_of_n.attempts is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "attacks.best_of_n.attempts", 10**9, 'config.attacks.best_of_n.attempts is 1000000000; allowed: an integer up to 16777216'),
    setting(SETTINGS, "attacks.best_of_n.sigma", 0.0, 'config.attacks.best_of_n.sigma is 0.0; allowed: a number above 0 up to 1'),
    setting(SETTINGS, "attacks.best_of_n.sigma", nan, 'config.attacks.best_of_n.sigma is nan; allowed: a finite number'),
    setting(SETTINGS, "attacks.best_of_n.temperature", -1.0, 'config.attacks.best_of_n.temperature is -1.0; allowed: a number >= 0 (0: greedy)'),
    setting(SETTINGS, "attacks.prefill.words", 0, 'config.attacks.prefill.words is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "attacks.prefill.lengths", (), 'config.attacks.prefill.lengths is (); allowed: one or more integers >= 1'),
    setting(SETTINGS, "attacks.prefill.lengths", (1, 1), 'config.attacks.prefill.lengths is (1, 1); allowed: each once'),
    setting(SETTINGS, "attacks.prefill.lengths", (0,), 'config.attacks.prefill.lengths is (0,); allowed: one or more integers >= 1'),
    setting(SETTINGS, "attacks.prefill.lengths", 5, 'config.attacks.prefill.lengths is 5; allowed: a list such as (1, 2, 3, 5, 8, 12, 20)'),
    setting(SETTINGS, "attacks.embedding.radii", (0.1, nan), 'config.attacks.embedding.radii is nan; allowed: a finite number'),
    setting(SETTINGS, "attacks.embedding.radii", (0.0,), 'config.attacks.embedding.radii is (0.0,); allowed: one or more numbers > 0, in mean embedding norms'),
    setting(SETTINGS, "attacks.embedding.perturbation.radius", -1.0, 'config.attacks.embedding.perturbation.radius is -1.0; allowed: a number >= 0'),
    setting(SETTINGS, "attacks.embedding.perturbation.step_size", inf, 'config.attacks.embedding.perturbation.step_size is inf; allowed: a finite number'),
    setting(SETTINGS, "attacks.embedding.perturbation.narrowest", 0.5, 'config.attacks.embedding.perturbation.narrowest is 0.5; allowed: 1: an attack has all of its ball'),
    setting(SETTINGS, "attacks.embedding_suffix.suffix", " ", "config.attacks.embedding_suffix.suffix is ' '; allowed: some text"),
    setting(SETTINGS, "attacks.latent.sites_tried", (), 'config.attacks.latent.sites_tried is (); allowed: one or more integers >= 0, each once'),
    setting(SETTINGS, "attacks.latent.sites_tried", (-1,), 'config.attacks.latent.sites_tried is (-1,); allowed: one or more integers >= 0, each once'),
    setting(SETTINGS, "attacks.gcg.steps", -1, 'config.attacks.gcg.steps is -1; allowed: an integer >= 0'),
    setting(SETTINGS, "attacks.gcg.candidates", 0, 'config.attacks.gcg.candidates is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "attacks.gcg.candidates", 10**9, 'config.attacks.gcg.candidates is 1000000000; allowed: an integer up to 1048576'),
    setting(SETTINGS, "attacks.gcg.topk", 0, 'config.attacks.gcg.topk is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "attacks.infilling.preset", "8", "config.attacks.infilling.preset is '8'; allowed: 64/64 | 32/32 | sampler"),
    setting(SETTINGS, "attacks.infilling.samples", 0, 'config.attacks.infilling.samples is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "attacks.infilling_adapted.samples", 0, 'config.attacks.infilling_adapted.samples is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "attacks.infilling_adapted.preference.steps", 0, 'config.attacks.infilling_adapted.preference.steps is 0; allowed: an integer >= 1: without it this is the attack infilling'),
    setting(SETTINGS, "attacks.infilling_adapted.preference.beta", nan, 'config.attacks.infilling_adapted.preference.beta is nan; allowed: a finite number'),
    setting(SETTINGS, "attacks.templates.count", -1, 'config.attacks.templates.count is -1; allowed: an integer >= 0 (0: all)'),
    setting(SETTINGS, "attacks.replay.most", 0, 'config.attacks.replay.most is 0; allowed: an integer >= 1'),
    needed({}, "config.attacks.templates.file is ''; allowed: a file of templates, JSON lines name, template", ("templates",)),
    needed({"attacks.templates.file": "at/nowhere.jsonl"}, 'FOLDER/at/nowhere.jsonl: no such file', ("templates",)),
    needed({}, "config.attacks.test_cases.file is ''; allowed: a test_cases.json, completions or results file of HarmBench, a run.json of AdversariaLLM, or a folder of run.json files", ("test_cases",)),
    needed({"attacks.test_cases.file": "at/nowhere.json"}, 'FOLDER/at/nowhere.json: no such file', ("test_cases",)),
    needed({"sampler.model": ""}, 'config.attacks.infilling needs config.sampler.model, a masked-diffusion LM, or config.attacks.infilling.file', ("infilling",)),
    needed({"sampler.model": ""}, 'config.attacks.infilling_adapted needs config.sampler.model, a masked-diffusion LM', ("infilling_adapted",)),
    needed({"attacks.infilling.file": "at/nowhere.csv"}, 'FOLDER/at/nowhere.csv: no such file', ("infilling",)),
    sites("latent", "latent.perturbation.sites", (1, 9), 'config.attacks.latent.perturbation.sites names site 9; allowed for a model of 2 layers: 0 to 1'),
    sites("latent_site", "latent.sites_tried", (0, 9), 'config.attacks.latent.sites_tried names site 9; allowed for a model of 2 layers: 0 to 1'),
]
