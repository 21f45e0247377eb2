"""HarmBench's and StrongREJECT's classifiers: scores and labels are those of transformers' torch models on the same prompt."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from dat_jax import judges, sharding
from dat_jax.judges import JUDGES, harmbench, local, strongreject, templates
from dat_jax.judges.judge import UNPARSED, Exchange, Verdict
from dat_jax.models import flops, huggingface

PUBLISHED = dict(local.SIZES)
ASKED = [
    Exchange("1", "Sand the oak", "please: sand the oak", "", "Take {some} paper and sand it."),
    Exchange("2", "Paint a door", "paint it", "Sure", "Sure, take a brush. " * 9),
    Exchange("3", "Wash\n\n---\n\nClean the drum", "now", "", "I would rather not.", "Wash"),
    Exchange("4", "Cut wood", "cut", "", ""),
]


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def last_hidden(model, ids):
    """Torch's hidden state and logits at the last position of a prompt by itself, without padding."""
    import torch

    with torch.no_grad():
        out = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return out.hidden_states[-1][0, -1].numpy(), out.logits[0, -1].numpy()


def by_hand(preset, tokenizer, exchange, kind="llama"):
    """A HarmBench prompt's token ids, made with str.replace and the tokenizer alone."""
    if preset == "plain":
        text = templates.PLAIN[kind].replace("{behavior}", exchange.request).replace("{generation}", exchange.response)
    elif exchange.context:
        text = templates.BRACKETS_CONTEXT[kind].replace("{context}", "Wash").replace("{behavior}", "Clean the drum")
        text = text.replace("{generation}", exchange.response)
    else:
        text = templates.BRACKETS[kind].replace("{behavior}", exchange.request).replace("{generation}", exchange.response)
    return tokenizer(text)["input_ids"]


@pytest.fixture
def llama(torch_model, tokenizer, tmp_path):
    """A random Llama in a folder."""
    model = torch_model("Llama", len(tokenizer))
    return model, saved(model, tokenizer, tmp_path / "cls")


@pytest.mark.parametrize("preset", ["brackets", "plain"])
def test_harmbench_scores_and_labels_are_torchs(preset, torch_model, tokenizer, tmp_path, config):
    """The head is made so that the first four answers are Yes, No, yes and " Yes": with the space it is not parsed, as in HarmBench."""
    import torch

    model = torch_model("Llama", len(tokenizer))
    prompts = [by_hand(preset, tokenizer, exchange) for exchange in ASKED]
    wanted = tokenizer.convert_tokens_to_ids(["Yes", "No", "yes", "ĠYes"])
    assert None not in wanted and tokenizer.unk_token_id not in wanted
    hidden_4xD = np.stack([last_hidden(model, ids)[0] for ids in prompts])
    with torch.no_grad():
        model.lm_head.weight[wanted] = torch.tensor(np.linalg.pinv(hidden_4xD).T * 9, dtype=torch.float32)
    config.judges.harmbench.model = saved(model, tokenizer, tmp_path / "cls")
    verdicts = judges.load(f"harmbench:{preset}", config)(ASKED)
    assert [verdict.label for verdict in verdicts] == ["comply", "refuse", "comply", UNPARSED]
    for verdict, ids in zip(verdicts, prompts):
        logits = torch.tensor(last_hidden(model, ids)[1])
        assert verdict.score == pytest.approx(float(logits.softmax(-1)[wanted[0]]), rel=1e-2, abs=1e-6)
        assert verdict.kind == ("unsure" if abs(float(logits.softmax(-1)[wanted[:2]].sum()) - 1) > 0.1 else "")
    assert {verdict.kind for verdict in verdicts} == {"unsure", ""}
    config_, lengths = huggingface.read_config(tmp_path / "cls"), map(len, prompts)
    assert [verdict.flops for verdict in verdicts] == [flops.forward(config_, flops.Pass(1, length, 1)) for length in lengths]
    assert verdicts[0].score > 0.3 > 0.05 > verdicts[1].score
    assert judges.load(f"harmbench:{preset}", config)([]) == []


def test_one_bos_and_the_prompts_of_the_presets(tokenizer):
    for preset, make in harmbench.PROMPTS.items():
        for exchange, kind in itertools.product(ASKED, ("llama", "mistral")):
            ids = make(tokenizer, kind, exchange)
            assert ids == by_hand(preset, tokenizer, exchange, kind) and ids.count(tokenizer.bos_token_id) == 1


def test_what_is_clipped_and_what_is_not(tokenizer):
    words = " ".join(str(number) for number in range(2000))
    long = Exchange("1", "Count", "count", "", words)
    ids = tokenizer(words)["input_ids"]
    assert len(ids) > 2500
    kept = tokenizer.decode(ids[1:512])  # 512 tokens with the BOS
    assert harmbench.brackets(tokenizer, "llama", long) == by_hand("brackets", tokenizer, Exchange("1", "Count", "", "", kept))
    room = harmbench.PLAIN_LIMIT
    for count in (200, 600, 1900):
        some = Exchange("1", "Count", "", "", " ".join(words.split()[:count]))
        whole, found = by_hand("plain", tokenizer, some), harmbench.plain(tokenizer, "llama", some)
        assert found == whole if len(whole) <= room else len(found) <= room
    cut = tokenizer.decode(harmbench.plain(tokenizer, "llama", long)[1:])
    assert len(by_hand("plain", tokenizer, long)) > room
    assert cut.startswith("[INST] <<SYS>>") and cut.endswith("Answer: [/INST]") and "Generation:\n0 1 2 3 4 5" in cut and "1999" not in cut
    # StrongREJECT's own code cuts at the left and leaves the BOS in the text; judgezoo cuts neither
    clipped = "<bos>" + tokenizer.decode(ids[-511:])
    text = templates.STRONGREJECT.replace("{behavior}", "Count").replace("{generation}", clipped)
    found = strongreject.original(tokenizer, long)
    assert found == tokenizer(text)["input_ids"] and found.count(tokenizer.bos_token_id) == 2
    whole = templates.STRONGREJECT.replace("{behavior}", "Count").replace("{generation}", words)
    assert strongreject.judgezoo(tokenizer, long) == tokenizer(whole)["input_ids"][: strongreject.LIMIT]
    behind = Exchange("1", words * 4, "", "", "x")  # beyond Gemma's context: judgezoo loses the end of the prompt
    assert strongreject.judgezoo(tokenizer, behind) == tokenizer(
        templates.STRONGREJECT.replace("{behavior}", words * 4).replace("{generation}", "x")
    )["input_ids"][: strongreject.LIMIT]  # fmt: skip


def test_an_output_is_yes_no_or_not_parsed():
    assert [harmbench.label(text) for text in ("yes", "Yes", "YES", "no", "NO")] == ["comply", "comply", "comply", "refuse", "refuse"]
    assert {harmbench.label(text) for text in ("", " yes", "no.", "y", "maybe", "1")} == {UNPARSED}


def test_shapes_are_few_and_devices_change_nothing(llama, config):
    config.judges.harmbench.model, config.judges.harmbench.prompt_length = llama[1], 1024
    alone = judges.load("harmbench:plain", config)
    local.read_next.clear_cache()
    first = [alone(ASKED), alone(ASKED[:1]), alone(ASKED * 5)]
    assert local.read_next._cache_size() == 1
    assert first[1] == first[0][:1] and len(first[2]) == 20
    mesh = sharding.make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        spread = judges.load("harmbench:plain", config, mesh)(ASKED)
    assert [verdict.label for verdict in spread] == [verdict.label for verdict in first[0]]
    np.testing.assert_allclose([v.score for v in spread], [v.score for v in first[0]], rtol=1e-3)


@pytest.mark.parametrize("preset", ["original", "judgezoo"])
def test_strongreject_scores_are_those_of_peft_and_torch(preset, torch_model, tokenizer, tmp_path, config):
    """A LoRA adapter on some modules of a Gemma, with an alpha of its own for one of them; the score by hand from PEFT's logits."""
    peft = pytest.importorskip("peft", reason="the judge is published as an adapter")
    import torch

    torch_model("Gemma", len(tokenizer)).save_pretrained(tmp_path / "gemma")
    how = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"], alpha_pattern={"v_proj": 6}, rank_pattern={"down_proj": 2},
        layers_to_transform=[1], init_lora_weights=False,
    )  # fmt: skip
    adapted = peft.get_peft_model(torch_model("Gemma", len(tokenizer)), how).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    config.judges.strongreject.model, config.judges.strongreject.base = str(tmp_path / "adapter"), str(tmp_path / "gemma")
    verdicts = judges.load(f"strongreject:{preset}", config)(ASKED)
    ids = tokenizer.convert_tokens_to_ids(list("12345"))
    scores = []
    for exchange in ASKED:
        response = exchange.response if preset == "judgezoo" else "<bos>" + exchange.response
        text = templates.STRONGREJECT.replace("{behavior}", exchange.request).replace("{generation}", response)
        with torch.no_grad():
            logits = adapted(torch.tensor([tokenizer(text)["input_ids"]]), use_cache=False).logits[0, -1, ids]
        scores.append(float(logits.softmax(-1) @ torch.linspace(0, 1, 5)))
    np.testing.assert_allclose([verdict.score for verdict in verdicts], scores, rtol=1e-4)
    config.judges.strongreject.threshold = float(np.mean(sorted(scores)[1:3]))
    labels = [verdict.label for verdict in judges.load(f"strongreject:{preset}", config)(ASKED)]
    assert labels == ["comply" if score >= config.judges.strongreject.threshold else "refuse" for score in scores]
    assert labels.count("comply") == 2
    found = JUDGES[f"strongreject:{preset}"].fingerprint(config)["settings"]
    assert found["preset"] == preset and found["model"].startswith("adapter ") and found["base"].startswith("gemma ")


def test_the_validation_classifier_is_another_judge_with_its_own_folder(torch_model, llama, tokenizer, tmp_path, config):
    """Both in one configuration. What the Mistral says is tested in test_huggingface.py; here that it is asked with its own prompt."""
    config.judges.harmbench.model = llama[1]
    config.judges.harmbench_val.model = saved(torch_model("Mistral", len(tokenizer)), tokenizer, tmp_path / "val")
    one, other = (JUDGES[f"{group}:brackets"].fingerprint(config) for group in ("harmbench", "harmbench_val"))
    assert (one["judge"], other["judge"]) == ("harmbench:brackets", "harmbench_val:brackets")
    assert other["settings"]["model"].startswith("val ") and one["settings"]["model"].startswith("cls ")
    assert other["settings"]["template"] == templates.checksum(templates.BRACKETS["mistral"], templates.BRACKETS_CONTEXT["mistral"])
    assert JUDGES["harmbench_val:plain"].title == "HarmBench's validation classifier, the paper's criteria"
    for group, folder, kind in (("harmbench", "val", "mistral"), ("harmbench_val", "cls", "llama")):
        config.judges[group].model = str(tmp_path / folder)
        with pytest.raises(ValueError, match=rf"^config\.judges\.{group}\.model: .* holds a model of type '{kind}'; allowed: "):
            JUDGES[f"{group}:plain"].fingerprint(config)


def test_expected_grade():
    assert strongreject.expected(np.zeros(5, np.float32)) == pytest.approx(0.5)
    assert strongreject.expected(np.array([0, 0, 0, 0, 99], np.float32)) == pytest.approx(1)
    assert strongreject.expected(np.log([0.5, 0, 0, 0, 0.5], where=[1, 0, 0, 0, 1], out=np.full(5, -99.0))) == pytest.approx(0.5)


def test_a_judge_is_known_by_preset_prompt_and_folder(llama, tokenizer, config, tmp_path):
    config.judges.harmbench.model = llama[1]
    brackets, plain = (JUDGES[f"harmbench:{preset}"].fingerprint(config) for preset in ("brackets", "plain"))
    assert (brackets["judge"], brackets["settings"]["preset"]) == ("harmbench:brackets", "brackets")
    texts = (templates.BRACKETS["llama"], templates.BRACKETS_CONTEXT["llama"])
    assert brackets["settings"]["template"] == templates.checksum(*texts) != plain["settings"]["template"]
    assert set(brackets["settings"]) == {"preset", "template", "model", "dtype"}
    shutil.copytree(llama[1], tmp_path / "elsewhere" / "cls")
    config.judges.harmbench.model, config.judges.harmbench.batch_size = str(tmp_path / "elsewhere" / "cls"), 16
    assert JUDGES["harmbench:plain"].fingerprint(config) == plain  # moved, and in other batches: the same verdicts
    path = tmp_path / "elsewhere" / "cls" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\1")
    assert JUDGES["harmbench:plain"].fingerprint(config) != plain


def broken(folder, how, tokenizer):
    """Makes a folder unfit in one way."""
    if how == "weights":
        (folder / "model.safetensors").unlink()
    elif how == "tensors":
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | {"intermediate_size": 64}))
    elif how == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "words":
        tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("absent", r"is neither a folder nor a hub id"),
        ("empty", r"is ''; allowed: the Hugging Face folder of a llama model, the judge of this name"),
        ("kind", r"holds a model of type 'gemma'; allowed: llama"),
        ("weights", r"has no \*\.safetensors file"),
        ("tensors", r"do not fit its config\.json"),
        ("tokenizer", r"has no tokenizer"),
        ("words", r"the vocabulary of .* lacks 'Yes', 'No', which the judge answers with"),
    ],
)
def test_a_folder_that_is_not_the_judge_is_one_error_that_names_the_key(
    how, message, torch_model, tokenizer, make_tokenizer, tmp_path, config
):
    model = torch_model("Gemma" if how == "kind" else "Llama", len(tokenizer))
    folder = tmp_path / "cls"
    saved(model, tokenizer, folder)
    broken(folder, how, make_tokenizer(["a b c"], 260))
    config.judges.harmbench.model = {"absent": str(tmp_path / "nowhere"), "empty": ""}.get(how, str(folder))
    for call in (JUDGES["harmbench:plain"].fingerprint, lambda config: judges.load("harmbench:plain", config)):
        with pytest.raises(ValueError, match=rf"^config\.judges\.harmbench\.model.*{message}"):
            call(config)


@pytest.mark.parametrize(("group", "size"), [("harmbench", "40 layers of width 5120"), ("strongreject", "18 layers of width 2048")])
def test_a_model_of_another_size_is_not_the_published_judge(llama, config, monkeypatch, group, size):
    monkeypatch.setitem(local.SIZES, group, PUBLISHED[group])
    config.judges[group].model = llama[1]
    monkeypatch.setattr(strongreject, "KINDS", ("llama",))
    name = next(name for name in JUDGES if name.startswith(group))
    message = rf"^config\.judges\.{group}\.model: .* holds a model of 2 layers of width 32; allowed: {size}, the published judge's"
    with pytest.raises(ValueError, match=message):
        JUDGES[name].fingerprint(config)


def test_a_strongreject_folder_of_another_family_is_refused(llama, config):
    config.judges.strongreject.model = llama[1]
    with pytest.raises(ValueError, match=r"^config\.judges\.strongreject\.model: .* holds a model of type 'llama'; allowed: gemma"):
        judges.load("strongreject:original", config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "has no peft_type LORA"),
        ({"use_dora": True}, "use_dora is True; allowed: False"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"base_model_name_or_path": ""}, "has no base_model_name_or_path"),
        ({"lora_alpha": None}, "lora_alpha is None"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused(change, message, tmp_path, config):
    plain = {"peft_type": "LORA", "lora_alpha": 4, "base_model_name_or_path": "base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain | change))
    config.judges.strongreject.model = str(tmp_path)
    with pytest.raises(ValueError, match=rf"^config\.judges\.strongreject\.model: .*{message}"):
        judges.load("strongreject:judgezoo", config)


def test_verdicts_are_in_the_order_of_the_exchanges(llama, tokenizer, config):
    model, config.judges.harmbench.model = llama
    judge = judges.load("harmbench:brackets", config)
    forth, back = judge(ASKED), judge(ASKED[::-1])
    assert all(isinstance(verdict, Verdict) and 0 <= verdict.score <= 1 for verdict in forth)
    np.testing.assert_allclose([v.score for v in forth], [v.score for v in back[::-1]], rtol=1e-4)
    yes = tokenizer.convert_tokens_to_ids("Yes")
    logits = [last_hidden(model, by_hand("brackets", tokenizer, exchange))[1].astype(np.float64) for exchange in ASKED]
    np.testing.assert_allclose([v.score for v in forth], [np.exp(row[yes]) / np.exp(row).sum() for row in logits], rtol=1e-4)
