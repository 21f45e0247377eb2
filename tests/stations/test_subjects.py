"""The models under evaluation: the target, what a run trained, others side by side; on any mesh, and from the right base alone."""

import json

import jax
import numpy as np
import pytest

from dat_jax import models, sharding, stations
from dat_jax.config import defaults, validate
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.stations import subjects
from dat_jax.stations.inputs import read_inputs
from dat_jax.training import loop


@pytest.fixture(scope="module")
def trained(tiny_job, brought, tmp_path_factory):
    """A run that trained CAT with a learning rate that moves the answers, and attacked it; its checkpoint and another model's folder."""
    root = tmp_path_factory.mktemp("trained")
    config = small(tiny_job.get_config(brought))
    config.training.methods = ("cat",)
    for mode in ("train", "evaluate"):
        assert stations.run(mode, config, str(root / "mine")) == 0
    model_config = ModelConfig(vocab_size=272, width=16, layers=2, heads=2, model_type="llama", max_length=256)
    models.save(Model(weights.initialize(jax.random.key(7), model_config), model_config, tiny_job.tokenizer()), str(root / "other"))
    return root


def small(config):
    """The tiny job's configuration with two attacks, one of them on the weights' gradient, and nothing sampled."""
    config.training.update({"methods": (), "watch_every": 0, "learning_rate": 0.05, "warmup": 0.0})
    config.evaluation.update({"attacks": ("direct", "embedding"), "behaviors": 2})
    config.data.update({"benign": "", "borderline": ""})
    return config


@pytest.fixture
def config(config):
    return small(config)


def found(config, tmp_path, mesh=None):
    """The subjects of a configuration, by their names."""
    inputs = read_inputs(config, tmp_path / "seed_0", 0)
    return {subject.name: subject for subject in subjects.subjects(inputs, mesh or sharding.make_mesh(1, 1, 1))}


def loaded(subject, config, mesh):
    """A subject's weights on the host."""
    with jax.set_mesh(mesh):
        return jax.device_get(subject.load(lambda: subjects.load_target(config, mesh)).params)


def answers(workdir, name):
    """What a model answered, without its name."""
    folder = workdir / "seed_0" / "answers" / name
    read = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}
    return {stem: [{key: value for key, value in line.items() if key != "method"} for line in lines] for stem, lines in read.items()}


def test_a_run_that_trains_nothing_attacks_the_target_itself(config, brought, tmp_path):
    validate(config)
    assert list(found(config, tmp_path)) == ["target"]
    config.training.methods = ("undefended", "cat")
    assert list(found(config, tmp_path)) == ["undefended", "cat"]


@pytest.mark.slow
def test_a_checkpoint_as_the_target_is_the_model_that_the_run_trained(config, trained, tmp_path):
    """Its answers are those of the run's own subject, line by line; so are those of the same checkpoint compared with the target."""
    config.target.checkpoint = str(trained / "mine" / "seed_0" / "cat")
    assert list(found(config, tmp_path)) == ["mine-cat"]
    assert stations.run("evaluate", config, str(tmp_path / "as_target")) == 0
    expected = answers(trained / "mine", "cat")
    assert expected.keys() == {"direct", "embedding"} and len(expected["direct"]) == 2
    assert answers(tmp_path / "as_target", "mine-cat") == expected

    config.target.checkpoint = ""
    config.evaluation.compare = (f"again={trained}/mine/seed_0/cat", str(trained / "other"))
    for mode in ("evaluate", "judge", "report"):
        assert stations.run(mode, config, str(tmp_path / "beside")) == 0
    assert answers(tmp_path / "beside", "again") == expected
    assert answers(tmp_path / "beside", "target") != expected != answers(tmp_path / "beside", "other")
    rows = json.loads((tmp_path / "beside" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"target", "again", "other"}
    made_with = [
        json.loads((folder / name / "direct.json").read_text())["weights"]
        for folder, name in ((trained / "mine/seed_0/answers", "cat"), (tmp_path / "beside/seed_0/answers", "again"))
    ]
    assert made_with[0] == made_with[1]


@pytest.mark.slow
def test_codes_have_no_place_for_weights_that_were_all_trained(config, trained, tmp_path):
    config.training.lora.rank, config.training.methods = 0, ("cat",)
    assert stations.run("train", config, str(tmp_path / "whole")) == 0
    config.training.methods, config.target.dtype, config.target.checkpoint = (), "int8", str(tmp_path / "whole" / "seed_0" / "cat")
    with jax.set_mesh(sharding.make_mesh(1, 1, 1)), pytest.raises(ValueError, match=r"config\.target\.dtype is 'int8', and all weights of"):
        subjects.load_target(config, sharding.make_mesh(1, 1, 1))


def test_a_worlds_sizes_that_a_precision_does_not_allow_are_named_before_it_is_built():
    config = defaults()
    config.world.enabled, config.target.dtype = True, "nf4"
    config.world.target.update({"width": 96, "heads": 4, "mlp_width": 144})
    with pytest.raises(ValueError, match=r"config\.target\.dtype is 'nf4', and the world's target has no room for it"):
        subjects.check_sources(config)


def test_a_checkpoint_stands_on_what_it_was_trained_from(config, trained, tmp_path):
    """CAT on top of CAT, by factors: wherever the second is loaded, the first is below it, once."""
    mesh, first, second = sharding.make_mesh(1, 1, 1), str(trained / "mine" / "seed_0" / "cat"), str(tmp_path / "again" / "seed_0" / "cat")
    config.training.methods, config.target.checkpoint = ("cat",), first
    assert stations.run("train", config, str(tmp_path / "again")) == 0
    expected = loaded(found(config, tmp_path / "again")["cat"], config, mesh)
    below = models.load(config.target.model)
    for folder in (first, second):
        with jax.set_mesh(mesh):
            below = loop.merged(below, *loop.restore(below, folder, mesh))
    jax.tree.map(np.testing.assert_array_equal, expected, jax.device_get(below.params))

    assert stations.run("export", config, str(tmp_path / "again")) == 0
    exported = tmp_path / "again" / "seed_0" / "export"
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(models.load(str(exported / "cat")).params), expected)
    assert [path.name for path in exported.iterdir()] == ["cat"]  # the second factors alone are no adapter of the base model

    config.training.methods, config.evaluation.compare = (), (f"one={first}", f"two={second}")
    one = None
    for checkpoint in (first, second, ""):  # what else is attacked does not matter
        config.target.checkpoint = checkpoint
        subject = found(config, tmp_path)
        jax.tree.map(np.testing.assert_array_equal, loaded(subject["two"], config, mesh), expected)
        one = loaded(subject["one"], config, mesh) if one is None else one
        jax.tree.map(np.testing.assert_array_equal, loaded(subject["one"], config, mesh), one)
    config.target.checkpoint = second
    with jax.set_mesh(mesh):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(subjects.load_target(config, mesh).params), expected)
    assert np.abs(one["layers"]["q"] - expected["layers"]["q"]).max() > 1e-3


@pytest.mark.slow
def test_a_checkpoint_restores_to_the_same_values_on_another_mesh(config, trained, tmp_path):
    config.evaluation.compare = (str(trained / "mine" / "seed_0" / "cat"),)
    one, two = (sharding.make_mesh(1, size, 1) for size in (1, 2))
    alone = loaded(found(config, tmp_path, one)["mine-cat"], config, one)
    with jax.set_mesh(two):
        model = found(config, tmp_path, two)["mine-cat"].load(lambda: subjects.load_target(config, two))
        assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(model.params)} == {2}
        split = [leaf for leaf in jax.tree.leaves(model.params) if not leaf.sharding.is_fully_replicated]
        assert split
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), jax.device_get(model.params), alone)
    undefended = models.load(config.target.model).params
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), alone["layers"], undefended["layers"])
    assert moved["q"] > 1e-3 and moved["down"] > 1e-3


@pytest.mark.slow
def test_a_checkpoint_on_another_base_model_is_refused(config, trained, brought, tmp_path):
    config.target.model, config.target.checkpoint = str(trained / "other"), str(trained / "mine" / "seed_0" / "cat")
    message = rf"cat was trained from 'target', and the target is '{trained}/other'; set config\.target\.model to it"
    with pytest.raises(ValueError, match=message):
        stations.run("evaluate", config, str(tmp_path / "as_target"))
    config.target.checkpoint, config.evaluation.compare = "", (str(trained / "mine" / "seed_0" / "cat"),)
    with pytest.raises(ValueError, match=message):
        stations.run("evaluate", config, str(tmp_path / "beside"))


def test_a_folder_without_checkpoints_is_no_training_folder(config, tmp_path):
    (tmp_path / "run" / "seed_0" / "cat").mkdir(parents=True)
    config.target.checkpoint = str(tmp_path / "run" / "seed_0" / "cat")
    with pytest.raises(ValueError, match=r"cat is no training folder: it has no checkpoints/; allowed: RUN/seed_0/METHOD"):
        subjects.load_target(config, sharding.make_mesh(1, 1, 1))


@pytest.mark.parametrize(
    ("methods", "compare", "name"),
    [
        ((), ("elsewhere/target",), "target"),
        (("undefended",), ("undefended=elsewhere/x",), "undefended"),
        ((), ("a/x", "b/x"), "x"),
    ],
)
def test_two_models_of_one_name_are_refused(config, tmp_path, methods, compare, name):
    config.training.methods, config.evaluation.compare = methods, compare
    with pytest.raises(ValueError, match=rf"two models are called '{name}'; allowed: different names, NAME=FOLDER in config"):
        found(config, tmp_path)
    config.evaluation.compare = tuple(f"name{number}={entry.split('=')[-1]}" for number, entry in enumerate(compare))
    assert list(found(config, tmp_path))[-len(compare) :] == [f"name{number}" for number in range(len(compare))]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("runs/mine/seed_12/dat/", "mine-dat"),
        ("gs://bucket/runs/mine/seed_0/cat", "mine-cat"),
        ("/folder/a b:c", "a_b_c"),
        ("model", "model"),
    ],
)
def test_names_can_be_file_names(source, name):
    assert subjects.short_name(source) == name
