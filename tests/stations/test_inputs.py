"""What a run reads: all that is missing listed at once, bad files found before a model is loaded, behaviors from a file alone."""

import json

import pytest

from dat_jax import models, sharding, stations
from dat_jax.config import defaults, validate
from dat_jax.stations import evaluate, inputs, sample, subjects, train


def test_all_files_that_are_missing_are_listed_at_once_with_format_and_command(brought, tmp_path, monkeypatch):
    for module, name in ((sharding, "initialize"), (sharding, "make_mesh"), (models, "load")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    config = defaults()
    config.target.model = config.sampler.model = "m"
    config.data.update(
        {"behaviors": f"{brought}/train.csv,{tmp_path}/b.csv", "chats": f"{tmp_path}/c", "eval_behaviors": f"{tmp_path}/e.csv"}
    )
    config.data.rewrites = f"{tmp_path}/r.jsonl"
    validate(config)
    with pytest.raises(ValueError) as caught:
        stations.run("all", config, str(tmp_path / "run"))
    first, *listed = str(caught.value).splitlines()
    assert first == "4 files are not there; bring what is missing, or set its key to where it is:"
    assert [line.split(":")[0] for line in listed] == [
        f"  {tmp_path}/b.csv  (config.data.behaviors)",
        f"  {tmp_path}/c  (config.data.chats)",
        f"  {tmp_path}/e.csv  (config.data.eval_behaviors)",
        f"  {tmp_path}/r.jsonl  (config.data.rewrites)",
    ]
    assert "CSV of training behaviors" in listed[0] and "BehaviorID" in listed[0] and "docs/formats.md" in listed[0]
    assert "python -m dat_jax.data.prepare" in listed[1] and "python -m dat_jax.stations.own_answers" in listed[1]
    assert "JSON lines id, rewrite, prompt" in listed[3]
    assert not (tmp_path / "run").exists()


def test_every_key_of_files_says_what_it_wants():
    keys = {key for key, value in defaults().data.items() if isinstance(value, str) and key not in ("perturb",)}
    assert set(inputs.BROUGHT) == keys
    assert all(len(text) > 20 for text in inputs.BROUGHT.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data.eval_behaviors": "train.csv", "data.eval_targets": "train.json"}, "is one of the training behaviors"),
        ({"data.prompt_length": 20}, r"the prompt of behavior 'paint_drum' has \d+ tokens; allowed: config.data.prompt_length = 20"),
        (
            {"data.behaviors": "tran.csv"},
            r"1 file is not there; .*\n  .*/tran\.csv  \(config\.data\.behaviors; did you mean train\.csv\?\): CSV of training",
        ),
        ({"data.benign": "train.csv"}, r"train\.csv, line 1: no column 'prompt'"),
        ({"data.chats": "train.json"}, r"train\.json, line 1: no key 'messages'"),
        (
            {"evaluation.behaviors": 0, "data.prompt_length": 20},
            r"6 of the 6 behaviors are too long: set that key to 128, or leave them out",
        ),
        ({"target.model": "nowhere"}, r"config\.target\.model: .*nowhere' is neither a folder nor a hub id"),
        (
            {"evaluation.compare": ("other=/nowhere",)},
            r"config\.evaluation\.compare: '/nowhere' is neither .*; allowed: a Hugging Face folder",
        ),
        ({"target.checkpoint": "target"}, r"target is no training folder: it has no checkpoints/; allowed: RUN/seed_0/METHOD"),
        (
            {"evaluation.forms": ("klingon",)},
            r"config\.evaluation\.forms names 'klingon'; the rewrites of the evaluation behaviors have past",
        ),
        (
            {"attacks.embedding.forms": ("german",)},
            r"config\.attacks\.embedding\.forms names 'german'; the rewrites that are tried have past",
        ),
        (
            {"evaluation.attacks": ("latent",), "attacks.latent.perturbation.sites": (1, 9)},
            r"config\.attacks\.latent\.perturbation\.sites names site 9; allowed for a model of 2 layers: 0 to 1",
        ),
        (
            {"evaluation.attacks": ("latent_site",), "attacks.latent.sites_tried": (0, 9)},
            r"config\.attacks\.latent\.sites_tried names site 9; allowed for a model of 2 layers: 0 to 1",
        ),
        (
            {"methods.cat.perturbation.sites": (9,)},
            r"config\.methods\.cat\.perturbation\.sites names site 9; allowed for a model of 2 layers: 0 to 1",
        ),
    ],
)
def test_bad_files_are_found_before_a_model_is_loaded(config, brought, tmp_path, change, message, monkeypatch):
    for module in (evaluate, sample, subjects, train):
        for name in ("load_model", "load_target"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *_: pytest.fail("a model was loaded"))
    config.evaluation.attacks = ("direct", "embedding+rewrite")
    for key, value in change.items():
        *groups, name = key.split(".")
        at = config
        for group in groups:
            at = at[group]
        at[name] = str(brought / value) if isinstance(value, str) else value
    with pytest.raises(ValueError, match=message):
        stations.run("all", config, str(tmp_path))


BEHAVIORS = {
    "HarmBench": "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nPaint the kite,standard,c,,,kite\n",
    "JailbreakBench": 'Index,Goal,Target,Behavior,Category,Source\n0,Paint the kite,"Sure, take it",Kite,c,Original\n',
    "AdvBench": 'goal,target\nPaint the kite,"Sure, take it"\n',
    "StrongREJECT": "category,source,forbidden_prompt\nc,custom,Paint the kite\n",
}


@pytest.mark.parametrize("name", BEHAVIORS)
def test_a_behaviors_file_alone_is_enough(config, tmp_path, name, caplog):
    """Nothing but a model and a behaviors file in a public format: rewrites are made by rules, and targets where the file has none."""
    caplog.set_level("INFO")
    (tmp_path / "b.csv").write_text(BEHAVIORS[name])
    bare = defaults()
    bare.training.methods, bare.mesh.fsdp, bare.target.model = (), 1, config.target.model
    bare.data.eval_behaviors = str(tmp_path / "b.csv")
    validate(bare)
    inputs.check_files(bare)
    found = inputs.read_inputs(bare, tmp_path / "seed_0", 0)
    (behavior,) = found.eval_behaviors
    made = name in ("HarmBench", "StrongREJECT")
    assert (behavior.text, behavior.made_target) == ("Paint the kite", made)
    assert behavior.targets == (("Sure, here is how to paint the kite:",) if made else ("Sure, take it",))
    assert {rewrite.form for rewrite in found.rewrites} == {"past", "future", "polite", "indirect", "story"}
    assert (found.behaviors, found.chats, found.utility_sets) == ([], [], {})
    noted = '1 of 1 behaviors came without a target; "Sure, here is ..." made from the request was used.'
    assert (noted in caplog.messages) == made


@pytest.mark.slow
def test_a_behaviors_file_alone_is_attacked_and_the_report_says_that_targets_were_made(config, tmp_path):
    bare = defaults()
    bare.training.methods, bare.mesh.fsdp, bare.target.model = (), 1, config.target.model
    bare.data.update({"prompt_length": 64, "response_length": 8})
    bare.evaluation.update({"attacks": ("direct", "prefill"), "max_new_tokens": 4, "batch_size": 4})
    for name, made in (("HarmBench", True), ("AdvBench", False)):
        (tmp_path / f"{name}.csv").write_text(BEHAVIORS[name])
        bare.data.eval_behaviors = str(tmp_path / f"{name}.csv")
        assert stations.run("all", bare, str(tmp_path / name)) == 0
        results = json.loads((tmp_path / name / "results.json").read_text())
        note = 'Behaviors without a target were given one made from the request, "Sure, here is ..."; it steers Prefilled answer.'
        assert (note in results["notes"]) == made == (note.replace('"', "&quot;") in (tmp_path / name / "report.html").read_text())
        assert {row["attack"] for row in results["rows"]} == {"direct", "prefill", "worst_case", "worst_case:text", "worst_case:prefill"}
