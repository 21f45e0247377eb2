"""Folders in and out: what transformers writes is read to the bit, what we write transformers reads, and every mismatch is named."""

import json
import shutil
import tracemalloc

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils.epath import backend
from safetensors.numpy import load_file, save_file

from dat_jax import models, sharding
from dat_jax.data import manifest
from dat_jax.models import huggingface, tensors, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model


def tensors_of(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def test_round_trip_keeps_every_tensor_to_the_bit(tiny, case, tmp_path):
    _, folder = tiny(case)
    models.save(models.load(str(folder)), str(tmp_path / "out"))
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name], err_msg=name)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields.items() >= {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "dtype"}.items()


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_transformers_reads_our_sharded_folder_with_our_logits(tiny, tmp_path, name):
    _, folder = tiny(name)
    import torch
    import transformers

    ours = models.load(str(folder))
    ours.params = jax.tree.map(lambda x: x * 1.01, ours.params)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    models.save(ours, str(tmp_path / "out"), shard_bytes=20_000)
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == (folder / "chat_template.jinja").read_bytes()
    index = json.loads((tmp_path / "out" / tensors.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(tmp_path / "out").values())
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = np.random.default_rng(0).integers(0, 96, (2, 9))
    with torch.no_grad():
        reference = theirs.eval()(torch.tensor(tokens), use_cache=False).logits.numpy()
    for model in (ours, models.load(str(tmp_path / "out"))):
        logits = models.logits(model.params, model.config, tokens, jnp.ones(tokens.shape, bool))
        assert np.abs(logits - reference).max() <= 1e-5 * np.abs(reference).max()


def test_bfloat16_and_sharded_files_are_read_as_they_are(tiny, tmp_path):
    model, _ = tiny("llama3")
    import copy

    import torch

    half = copy.deepcopy(model).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half", max_shard_size="10KB")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 2
    ours = models.load(str(tmp_path / "half"))
    assert ours.params["layers"]["q"].dtype == jnp.float32
    tokens = np.random.default_rng(0).integers(0, 96, (2, 9))
    everywhere = jnp.ones(tokens.shape, bool)
    with torch.no_grad():
        exact = half.float()(torch.tensor(tokens), use_cache=False).logits.numpy()
    logits = models.logits(ours.params, ours.config, tokens, everywhere)
    assert np.abs(logits - exact).max() <= 1e-5 * np.abs(exact).max()
    kept = models.load(str(tmp_path / "half"), dtype="bfloat16")
    rough = models.logits(kept.params, kept.config, tokens, everywhere)
    assert kept.params["layers"]["q"].dtype == jnp.bfloat16
    assert np.abs(rough - exact).max() <= 0.1 * np.abs(exact).max()
    models.save(kept, str(tmp_path / "out"))
    written = tensors_of(tmp_path / "out")
    assert all(np.array_equal(tensor, written[name]) for name, tensor in tensors_of(tmp_path / "half").items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_text_part_of_a_multimodal_gemma3(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    whole = transformers.Gemma3ForConditionalGeneration(config)
    whole.eval().save_pretrained(tmp_path / "whole")
    ours = models.load(str(tmp_path / "whole"))
    models.save(ours, str(tmp_path / "out"))
    part = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = np.random.default_rng(0).integers(3, 64, (2, 9))
    logits = models.logits(ours.params, ours.config, tokens, jnp.ones(tokens.shape, bool))
    with torch.no_grad():
        for model in (whole, part):
            reference = model(torch.tensor(tokens), use_cache=False).logits.numpy()
            assert np.abs(logits - reference).max() <= 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize(("name", "family"), [("llada_tiny/mha", "llada"), ("dream_tiny/checkpoint", "Dream")])
def test_diffusion_folders_round_trip(golden, tmp_path, name, family):
    folder = golden / name
    model = models.load(str(folder))
    assert model.config.model_type == family
    models.save(model, str(tmp_path / "out"), shard_bytes=100_000)
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(np.array_equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("family", ["llama", "llada"])
def test_a_model_made_here_is_written_and_read_back(tmp_path, family):
    changes = {"causal": False, "mask_token": 39} if family == "llada" else {"kv_heads": 1}
    config = ModelConfig(vocab_size=40, width=16, layers=2, heads=2, model_type=family, max_length=64, **changes)
    made = Model(weights.initialize(jax.random.key(0), config), config, tokenizer=None)
    models.save(made, str(tmp_path / "new"))
    again = models.load(str(tmp_path / "new"))
    assert again.config == config
    assert jax.tree.all(jax.tree.map(np.array_equal, made.params, again.params))
    with pytest.raises(ValueError, match="already holds weights"):
        models.save(made, str(tmp_path / "new"))
    with pytest.raises(ValueError, match="'gemma2' model cannot be written"):
        models.save(Model(made.params, ModelConfig(40, 16, 2, 2, model_type="gemma2"), None), str(tmp_path / "other"))


@pytest.fixture
def folder(tmp_path):
    """A small llama folder made here, which may be edited as one from elsewhere: without the manifest that notices it."""
    config = ModelConfig(vocab_size=64, width=16, layers=2, heads=4, kv_heads=2)
    models.save(Model(weights.initialize(jax.random.key(0), config), config, None), str(tmp_path / "made"))
    manifest.check(tmp_path / "made" / huggingface.MANIFEST)
    (tmp_path / "made" / huggingface.MANIFEST).unlink()
    return tmp_path / "made"


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), f"missing {NORM}"),
        (lambda t: t.update(surplus=np.zeros(3)), "not part of a 'llama' model: surplus"),
        (lambda t: t.update({NORM: np.zeros(15, np.float32)}), r"layernorm.weight \(15,\) instead of \(16,\)"),
        (lambda t: t.update({NORM: np.zeros(16, np.int8)}), f"{NORM} is I8"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder, change, message):
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        models.load(str(folder))


def test_leftover_buffers_and_a_stored_tied_head_are_read(folder):
    edit(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)}))
    models.load(str(folder))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": True}))
    with pytest.raises(ValueError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        models.load(str(folder))
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert "head" not in models.load(str(folder)).params


def test_folders_that_cannot_be_read_say_why(folder, tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        models.load(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="dtype is 'int4'"):
        models.load(str(folder), dtype="int4")
    with pytest.raises(ValueError, match="choose another"):
        models.save(models.load(str(folder)), str(folder))
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / tensors.INDEX).write_text(json.dumps({"weight_map": {"x": "model.safetensors"}}))
    with pytest.raises(ValueError, match="and its files disagree on"):
        models.load(str(broken))
    (broken / tensors.INDEX).write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    with pytest.raises(ValueError, match=r"gone\.safetensors, which is not in the folder"):
        models.load(str(broken))
    shutil.copy(broken / "model.safetensors", tmp_path / "outside.safetensors")
    for listed, message in (
        ({"weight_map": {"x": "../outside.safetensors"}}, r"weight_map\['x'\] is '\.\./outside\.safetensors'; allowed: the name of"),
        ({"weight_map": {"x": 3}}, r"weight_map\['x'\] is 3; allowed: the name of"),
        ({"weights": {}}, "has no weight_map"),
        ([], "has no weight_map"),
    ):
        (broken / tensors.INDEX).write_text(json.dumps(listed))
        with pytest.raises(ValueError, match=message):
            models.load(str(broken))
    (broken / tensors.INDEX).write_text("{")
    with pytest.raises(ValueError, match=r"index\.json, line 1: not JSON: "):
        models.load(str(broken))
    (broken / tensors.INDEX).unlink()
    whole = (broken / "model.safetensors").read_bytes()
    for damaged in (whole[:100], whole[:-1], b"\xff" * 8 + whole[8:], b""):
        (broken / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"broken/model\.safetensors is damaged: "):
            models.load(str(broken))
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \*.safetensors file"):
        models.load(str(broken))
    (broken / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {"bits": 4}}))
    with pytest.raises(ValueError, match="quantization_config"):
        models.load(str(broken))
    (broken / "config.json").write_text('{\n"model_type": llama}')
    with pytest.raises(ValueError, match=r"broken/config\.json, line 2: not JSON: "):
        models.load(str(broken))
    (broken / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        models.load(str(broken))


@pytest.mark.parametrize("shape", [(2, 4, 1), (1, 2, 4), (1, 1, 8)])
def test_shards_on_a_mesh_hold_the_same_weights(folder, shape):
    whole = models.load(str(folder))
    mesh = sharding.make_mesh(*shape)
    spread = models.load(str(folder), mesh=mesh)
    placed = weights.abstract(whole.config, "float32", mesh)
    assert jax.tree.all(jax.tree.map(lambda x, want: x.sharding == want.sharding, spread.params, placed))
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.params, spread.params))
    tokens = np.arange(8).reshape(2, 4)
    logits = models.logits(spread.params, spread.config, tokens, jnp.ones((2, 4), bool))
    reference = models.logits(whole.params, whole.config, tokens, jnp.ones((2, 4), bool))
    np.testing.assert_allclose(logits, reference, rtol=1e-4, atol=1e-5)
    models.save(spread, str(folder.parent / "again"))
    assert all(np.array_equal(t, tensors_of(folder)[k]) for k, t in tensors_of(folder.parent / "again").items())


@pytest.mark.parametrize("kind", ["cpu", "accelerator"])
def test_host_memory_stays_near_the_largest_shard(tmp_path, monkeypatch, kind):
    """numpy's memory while loading: on a CPU beside the arrays themselves; an accelerator, which copies, is imitated."""
    config = ModelConfig(vocab_size=4096, width=256, layers=8, heads=4, mlp_width=1024)
    made = Model(weights.initialize(jax.random.key(0), config), config, None)
    models.save(made, str(tmp_path / "made"))
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 1 << 18)
    if kind == "accelerator":
        monkeypatch.setattr(tensors, "keeps_host_buffers", lambda device: False)
        placed = jax.device_put
        monkeypatch.setattr(jax, "device_put", lambda x, device: placed(placed(x, device) + 0, device))
    mesh = sharding.make_mesh(1, 2, 1, devices=jax.devices()[:2])
    models.load(str(tmp_path / "made"), mesh=mesh)  # imports what it needs
    tracemalloc.start()
    model = models.load(str(tmp_path / "made"), mesh=mesh)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    shards = [shard.data.nbytes for leaf in jax.tree.leaves(model.params) for shard in leaf.addressable_shards]
    assert max(shards) == 8 * 256 * 1024 * 4 // 2
    staging = peak - sum(shards) if kind == "cpu" else peak
    assert staging <= 1.3 * max(shards), f"{staging / max(shards):.2f} of the largest shard"
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, made.params))


def test_hub_without_network_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'nobody/nothing' is no folder here and the hub does not give it: "):
        models.load("nobody/nothing", cache_dir=str(tmp_path))


def test_folders_on_cloud_storage_are_written_and_read(folder, tmp_path, monkeypatch):
    """gs:// goes through etils to a file system in memory that stands for the bucket."""
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda _: memory)
    model = models.load(str(folder))
    models.save(model, "gs://bucket/run/export", shard_bytes=10_000)
    names = {name.rsplit("/", 1)[1] for name in memory.store}
    assert {"config.json", tensors.INDEX} < names
    again = models.load("gs://bucket/run/export", cache_dir=str(tmp_path / "cache"))
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, again.params))
    with pytest.raises(ValueError, match="already holds weights"):
        models.save(model, "gs://bucket/run/export")
    memory.store.clear()
    doubled = Model(jax.tree.map(lambda x: 2 * x, model.params), model.config, None, model.source)
    models.save(doubled, "gs://bucket/run/export")  # one file now, and other numbers
    again = models.load("gs://bucket/run/export", cache_dir=str(tmp_path / "cache"))
    assert jax.tree.all(jax.tree.map(np.array_equal, doubled.params, again.params))
    with pytest.raises(ValueError, match="gs://bucket/absent is not a folder"):
        models.load("gs://bucket/absent")


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_whether_numbers_are_finite_is_told_from_their_bits(kind):
    dtype = jnp.dtype(kind)
    largest = float(jnp.finfo(dtype).max)
    numbers = np.array([0.0, -0.0, 1.0, -1.0, largest, -largest, float(jnp.finfo(dtype).smallest_subnormal)], dtype)
    for some in (numbers, numbers[:0], numbers[numbers > 0], numbers[numbers < 0], numbers[::2]):
        assert tensors.finite(some)
        for odd in (np.nan, -np.nan, np.inf, -np.inf):
            assert not tensors.finite(np.append(some, np.array([odd], dtype)))
