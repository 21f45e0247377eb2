"""What cannot work is said before a model's weights are loaded, with the key or file, and the call leaves nothing in its workdir."""

import json

import pytest
from etils import epath

from dat_jax import models, stations
from dat_jax.models import tensors
from dat_jax.stations import workdir


def tried(config, tmp_path, monkeypatch, mode="all"):
    """The message of a call that fails before weights are read, and leaves no folder."""
    with monkeypatch.context() as patch:
        patch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
        patch.setattr(tensors, "read", lambda *_, **__: pytest.fail("weights were read"))
        with pytest.raises(ValueError) as caught:
            stations.run(mode, config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    return str(caught.value)


@pytest.mark.parametrize("mode", ["all", "evaluate", "train,evaluate"])
def test_nothing_to_evaluate_with(config, tmp_path, monkeypatch, mode):
    config.data.eval_behaviors = ""
    message = "config.data.eval_behaviors is empty; allowed: a behaviors CSV to attack the models with"
    assert tried(config, tmp_path, monkeypatch, mode) == message


@pytest.mark.parametrize("key", ["judges", "judge"])
def test_the_worlds_judge_without_a_world(config, brought, tmp_path, monkeypatch, key):
    if key == "judges":
        config.evaluation.judges = ("refusal_prefix", "world")
        message = f"config.evaluation.judges names 'world', which does not know 'paint_kite' of {brought}/eval.csv"
    else:
        config.sampler.judge = "world"
        message = f"config.sampler.judge is 'world', which does not know 'paint_gate' of {brought}/train.csv"
    assert tried(config, tmp_path, monkeypatch) == f"{message}; allowed: a judge of these behaviors"


@pytest.mark.parametrize("key", ["target.model", "rewriter.model", "evaluation.compare"])
def test_a_masked_lm_that_is_to_answer(config, brought, tmp_path, monkeypatch, key):
    group, name = key.split(".")
    config[group][name] = (f"other={brought}/sampler",) if name == "compare" else f"{brought}/sampler"
    message = tried(config, tmp_path, monkeypatch)
    assert message.startswith(f"config.{key}: '{brought}/sampler' is a masked-diffusion LM (llada); allowed: a causal LM, which can answer")


def test_a_causal_lm_that_is_to_draw_prompts(config, brought, tmp_path, monkeypatch):
    config.sampler.model = str(brought / "target")
    message = tried(config, tmp_path, monkeypatch)
    assert message.startswith("config.sampler.model: 'llama' is not a masked-diffusion LM") and "allowed: LLaDA, Dream" in message
    config.training.methods = ("cat",)  # draws none
    assert tried(config, tmp_path, monkeypatch, "export").endswith("the training of cat is not finished; run --mode=train first")


@pytest.mark.parametrize("name", ["benign", "borderline", "rewrites"])
def test_a_prompt_of_more_than_eight_blocks(config, tmp_path, monkeypatch, name):
    prompt = "x" * (8 * config.data.prompt_length + 1)
    rows = {"id": "paint_kite", "prompt": prompt} | ({"rewrite": "past"} if name == "rewrites" else {})
    (tmp_path / "long.jsonl").write_text(json.dumps(rows) + "\n")
    config.data[name] = str(tmp_path / "long.jsonl")
    what = "the rewrite of" if name == "rewrites" else "id"
    message = tried(config, tmp_path, monkeypatch)
    assert message.startswith(f"{tmp_path}/long.jsonl, {what} 'paint_kite': the prompt has ")
    assert "allowed: 512, 8 times config.data.prompt_length = 64; raise that key to 128, or leave the prompt out" in message


def test_rewrites_of_unknown_behaviors_alone(config, brought, tmp_path, monkeypatch):
    (tmp_path / "r.jsonl").write_text(json.dumps({"id": "nobody", "rewrite": "past", "prompt": "p"}) + "\n")
    config.data.rewrites = str(tmp_path / "r.jsonl")
    message = f"{tmp_path}/r.jsonl: no rewrite of an evaluation behavior; allowed as id: those of {brought}/eval.csv that are tried, "
    assert tried(config, tmp_path, monkeypatch) == message + "such as 'paint_kite'"


@pytest.mark.parametrize("key", ["target", "sampler"])
def test_a_kernel_that_the_devices_do_not_have(config, tmp_path, monkeypatch, key):
    config[key].attention = "splash"
    config.data.update({"prompt_length": 64, "response_length": 64})
    message = f"config.{key}.attention is 'splash', a kernel for TPUs, and the devices are of kind 'cpu'; allowed: xla"
    assert tried(config, tmp_path, monkeypatch) == message


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("train", "seed_0/prompts/prompts.jsonl: no prompts were sampled yet; run --mode=sample first"),
        ("evaluate", "seed_0/cat: no checkpoint of cat; run --mode=train first"),
        ("judge", "seed_0/answers/undefended: no answers there yet; run --mode=evaluate first"),
        ("export", "seed_0/cat: the training of cat is not finished; run --mode=train first"),
    ],
)
def test_a_station_before_its_turn_leaves_no_claim(config, tmp_path, monkeypatch, mode, message):
    assert tried(config, tmp_path, monkeypatch, mode) == f"{tmp_path}/run/{message}"


def test_a_claim_stays_where_there_was_one_or_something_was_made(config, tmp_path):
    folder = epath.Path(tmp_path)
    for before, made in ((True, False), (False, True)):
        if before:
            workdir.claim(folder, config)
        with pytest.raises(ValueError, match="wrong"), workdir.returned(folder):
            workdir.claim(folder, config)
            if made:
                (folder / "seed_0" / "prompts").mkdir(parents=True)
                (folder / "seed_0" / "prompts" / "prompts.jsonl").touch()
            raise ValueError("wrong")
        assert (folder / "config.json").exists()
        (folder / "config.json").unlink()
