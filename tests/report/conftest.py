"""A workdir as finished runs leave it, with made-up numbers; nothing of it was measured."""

import json

import jax
import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from dat_jax.models import weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model

RATES = {"undefended": (0.05, 0.95), "cat": (0.02, 0.6), "dat": (0.0, 0.05)}  # on direct requests, on everything else
ATTACKS = ("direct", "rewrite:past", "rewrite:french", "best_of_n", "prefill", "embedding", "embedding+rewrite:past")


def write_jsonl(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def made_up_workdir(tmp_path):
    """Returns a folder with three methods, three seeds, seven attacks, utility, metrics and prompts."""
    generator = np.random.default_rng(0)
    for seed in range(3):
        run = tmp_path / f"seed_{seed}"
        for method, (direct, other) in RATES.items():
            folder = run / "evaluation" / method
            for attack in ATTACKS:
                rate = direct if attack == "direct" else other * (0.6 if attack in ("best_of_n", "prefill") else 1)
                lines, responses = [], {"comply": "you paint it with a brush made of oak", "refuse": "i am sorry , that is not allowed"}
                for behavior in range(24):
                    for attempt in range(4 if attack == "best_of_n" else 1):
                        label = "comply" if generator.random() < rate / (4 if attack == "best_of_n" else 1) else "refuse"
                        lines.append(
                            {"method": method, "attack": attack, "seed": seed, "behavior": f"paint_wood_{behavior}",
                             "prompt": f"how did people paint <wood> number {behavior} & more, try {attempt}?",
                             "prefill": "you paint it" if attack == "prefill" else "",
                             "label": label, "response": responses[label]}
                        )  # fmt: skip
                write_jsonl(folder / f"{attack.replace(':', '-')}.jsonl", lines)
            (folder / "settings.json").write_text(json.dumps({"held_out_forms": ["french"]}))
            for name, kept, refused in (("benign", 0.97, 0.01), ("borderline", 0.85, 0.12)):
                draws = generator.random(40)
                labels = ["comply" if draw < kept else "refuse" if draw < kept + refused else "lost" for draw in draws]
                write_jsonl(
                    folder / "utility" / f"{name}.jsonl",
                    [{"method": method, "set": name, "seed": seed, "id": str(i), "form": "direct", "prompt": "p", "expected": "e",
                      "response": "r", "label": label, "exact": label == "comply"} for i, label in enumerate(labels)],
                )  # fmt: skip
            if method != "undefended":
                steps = np.arange(1, 151)
                noise = generator.normal(size=(150, 3)) * 0.15
                write_jsonl(
                    run / method / "metrics.jsonl",
                    [{"step": int(s), "loss/away": -5 * (1 - np.exp(-s / 30)) + a, "loss/toward": 4 * np.exp(-s / 20) + 0.5 + b / 3,
                      "loss/utility": 0.4 + 0.3 * np.exp(-s / 60) + c / 4, "loss/total": 1.0, "attack/gain": 3 * np.exp(-s / 80) + b,
                      "attack/norm": 0.045 + a / 100, "attack/at_radius": 0.8 + c / 10, "gradient_norm": 1.0, "nll/harmful": 1.0,
                      "tokens_per_second": 0.0 if s == 1 else 5200.0} for s, (a, b, c) in zip(steps, noise)],
                )  # fmt: skip
                (run / method / "finished.json").write_text(json.dumps({"seconds": 41.5, "collapsed": False}))
        forms = ("how did one paint the {} ?", "bitte das {} bemalen", "paint {}", "<b>story</b> of {}", "i wonder how {} is painted")
        write_jsonl(
            run / "prompts" / "prompts.jsonl",
            [{"behavior_id": f"paint_{word}", "prompt": forms[k % 5].format(word), "response": f"you paint the {word} with a brush",
              "seed": k, "sampler": "s", "settings": {}, "log_likelihood": float(generator.normal(-14, 4)), "tokens": 8,
              "compliance": float(k % 2), "selected": k % 3 == 0} for word in ("wood", "door", "boat", "wall") for k in range(30)],
        )  # fmt: skip
        cost = {"forward_passes": 960, "flops": 1.2e13, "seconds": 14.25, "tokens": 30720}
        (run / "prompts" / "cost.json").write_text(json.dumps(cost))
    return tmp_path


@pytest.fixture(scope="session")
def small_model():
    """Returns a random causal model over a word-level tokenizer with a chat template."""
    words = [*"abcdefghijklmnopqrstuvwxyz", "paint", "wash", "the", "wood", "door", "with", "brush", "how", "did", "people"]
    specials = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(specials + words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(specials)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
    )
    config = ModelConfig(vocab_size=len(specials + words), width=32, layers=2, heads=2, remat=False)
    params = weights.initialize(jax.random.key(4), config)
    return Model(params, config, tokenizer, "small")
