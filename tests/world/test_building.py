"""A world of micro size, built in a temporary folder and read back by the functions that read users' files."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from dat_jax import models, world
from dat_jax.data import behaviors, chats, conversations, rewrites, utility
from dat_jax.world import building, grammar, splits, target, tokenizers

MICRO = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16, "batch": 8, "steps": 2}


def micro(**changes):
    config = dataclasses.asdict(building.World(enabled=True))
    config["target"] |= MICRO | {"tuning_steps": 2} | changes
    config["sampler"] |= MICRO
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("world"), []
    world.build(folder, 3, micro(), lines.append)
    assert "built in" in lines[-1]
    return folder


def test_the_files_are_what_users_bring(folder):
    parts = splits.draw(3)
    paths = {f"{group}.{key}": str(folder / name) for group, key, name in world.FILES}
    trained = behaviors.load_behaviors(paths["data.behaviors"], paths["data.targets"], paths["data.safe_responses"])
    evaluated = behaviors.load_behaviors(paths["data.eval_behaviors"], paths["data.eval_targets"])
    assert [b.id for b in trained] == [request.id for request in parts.train]
    assert [b.id for b in evaluated] == [request.id for request in parts.evaluation]
    watched = behaviors.load_behaviors(paths["data.watch_behaviors"], paths["data.watch_targets"])
    assert [b.id for b in watched] == [request.id for request in parts.tuned]
    assert not {b.text for b in watched} & {b.text for b in (*trained, *evaluated)}
    assert {b.refusals[0] for b in trained} == set(grammar.REFUSALS)
    assert all(b.targets == (grammar.answer(grammar.request(b.id)),) for b in (*trained, *evaluated, *watched))
    assert len(chats.load_chats(paths["data.chats"])) == 96 * len(grammar.COMMON_FORMS) * 3
    tried = rewrites.read_rewrites(paths["data.rewrites"])
    assert {r.behavior for r in tried} == {b.id for b in evaluated}
    assert {r.form for r in tried if r.held_out} == {*grammar.HELD_OUT_FORMS, *grammar.COMPOSED_FORMS}
    assert {r.form for r in tried if not r.held_out} == set(grammar.FORMS) - {"direct"}
    taught = rewrites.read_rewrites(paths["data.train_rewrites"])
    assert {r.behavior for r in taught} == {b.id for b in trained}
    assert {r.form for r in taught} == set(grammar.FORMS) - {"direct"} and not any(r.held_out for r in taught)
    sets = utility.load_sets(paths["data.benign"], paths["data.borderline"])
    assert len(sets["benign"]) == 32 * 4 and len(sets["borderline"]) == 64 * 4
    assert {item.form for item in sets["benign"]} == {*grammar.FORMS, *grammar.HELD_OUT_FORMS}


def test_the_models_load_and_answer(folder):
    defended, sampler = models.load(str(folder / "target")), models.load(str(folder / "sampler"))
    assert (defended.config.model_type, sampler.config.model_type) == ("llama", "llada")
    assert sampler.config.mask_token == sampler.tokenizer.mask_token_id and not sampler.config.causal
    for model in (defended, sampler):
        tokens = np.asarray(model.tokenizer(["how do i paint a drum ?"]).input_ids)
        logits = models.logits(model.params, model.config, tokens, np.ones_like(tokens, bool))
        assert logits.shape == (1, 7, model.config.vocab_size) and np.isfinite(logits).all()
    assert defended.config.vocab_size >= len(defended.tokenizer)


def test_a_finished_world_stays_and_another_is_refused(folder):
    before, lines = (folder / "target" / "model.safetensors").stat().st_mtime_ns, []
    world.build(folder, 3, micro(), lines.append)
    assert lines == ["world, seed 3: done"]
    assert (folder / "target" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="was made with seed = 3, now it is 4; use another folder"):
        world.build(folder, 4, micro(), lines.append)
    with pytest.raises(ValueError, match=r"was made with target\.steps = 2, now it is 3; use another folder"):
        world.build(folder, 3, micro(steps=3), lines.append)


def test_an_interrupted_build_goes_on(tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building.sampler, "train", fail)
        with pytest.raises(KeyboardInterrupt):
            world.build(tmp_path, 3, micro(), lambda line: None)
    assert not (tmp_path / building.MARKER).exists()
    kept = (tmp_path / "target" / "model.safetensors").stat().st_mtime_ns
    world.build(tmp_path, 3, micro(), lambda line: None)
    assert (tmp_path / "target" / "model.safetensors").stat().st_mtime_ns == kept
    assert json.loads((tmp_path / building.MARKER).read_text())["seed"] == 3


def test_pairs_are_tokenized_as_the_chat_pipeline_does():
    tokenizer = tokenizers.target_tokenizer(0)
    pairs = [(grammar.render(request, form), grammar.answer(request)) for form in grammar.FORMS for request in grammar.REQUESTS[:3]]
    dialogs = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] for prompt, answer in pairs]
    wanted = conversations.tokenize(tokenizer, dialogs, target.PROMPT_LENGTH, target.RESPONSE_LENGTH)
    found = target.encode(tokenizer, pairs)
    for field in ("tokens_BxT", "response_mask_BxT", "valid_BxT"):
        np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("steps", 0, "target.steps is 0"), ("tuning_refusals", 1.5, "target.tuning_refusals is 1.5"), ("width", 10, "target.width is 10")],
)
def test_bad_settings_are_named(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        world.build(tmp_path, 0, micro(**{key: value}), lambda line: None)


@pytest.mark.parametrize("name", ["chats.jsonl", "targets.json", "behaviors_train.csv", "rewrites.jsonl", "pairs.jsonl", "world.json"])
def test_a_file_of_the_world_that_was_edited_or_lost_is_named(folder, tmp_path, name):
    for change in (lambda data: data.replace(b"a", b"e", 1), lambda data: data[: len(data) // 2], None):
        copy = tmp_path / f"{change and change(b'ab')}"
        shutil.copytree(folder, copy)
        (copy / name).unlink() if change is None else (copy / name).write_bytes(change((copy / name).read_bytes()))
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            world.build(copy, 3, micro(), lambda line: None)


def test_weights_with_a_flipped_bit_are_not_loaded(folder, tmp_path):
    shutil.copytree(folder / "target", tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors was cut, damaged or edited"):
        models.load(str(tmp_path / "target"))
