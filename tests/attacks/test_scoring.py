"""Log-likelihoods of choices and chats: transformers' torch model on the same tokens, and lm-eval's own harness where it is installed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models

from dat_jax import models
from dat_jax.attacks import scoring
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data import tasks
from dat_jax.data.tasks import Question
from dat_jax.models import lora as adapters
from dat_jax.models import weights
from dat_jax.models.adapters import save_adapter
from dat_jax.models.huggingface import Model

torch = pytest.importorskip("torch", reason="compares with transformers' torch models")

HOW = Decoding(16, 8, 4, 3, 0.0, "user", None)
ARC = [
    {"question": "What do people paint the door with?", "text": ["a brush", "the sea, of all things", "é"], "answer": 1},
    {"question": "Where is the wood? ", "text": ["in the house", "x"], "answer": 0},
    {"question": "A question that is longer than the others, with a block of its own?", "text": ["so", "so it is", "no"], "answer": 2},
]  # fmt: skip
MMLU = [
    {"question": "Which one?", "subject": "high_school_physics", "choices": ["one", "two", "three", "four"], "answer": 2},
    {"question": " And now? ", "subject": "high_school_physics", "choices": ["one", "two", "three", "a longer choice"], "answer": 0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random torch Llama of two layers with a byte-level tokenizer that puts BOS in front."""
    path = tmp_path_factory.mktemp("llama")
    inner = Tokenizer(tokenizer_models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [row["question"] for row in (*ARC, *MMLU)] * 5
    special, alphabet = ["<bos>", "<eos>"], pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=96, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.5 if weight.ndim > 1 else 0.1) + (weight.ndim == 1))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def victim(folder):
    return Victim(models.load(str(folder)), HOW, 0)


def questions(folder):
    """The questions of both files, through the reader."""
    arc = [{"question": row["question"], "choices": {"text": row["text"], "label": list("ABC")[: len(row["text"])]},
            "answerKey": "ABC"[row["answer"]]} for row in ARC]  # fmt: skip
    for name, rows in (("arc", arc), ("mmlu", MMLU)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: tasks.read(str(folder / f"{name}.jsonl")) for name in ("arc", "mmlu")}


def test_choices_are_scored_as_torch_scores_them(victim, folder):
    """Every choice of both kinds of task, in blocks of 16, 32 and 64 tokens, one and several tokens long."""
    asked = [question for found in questions(folder).values() for question in found]
    pairs = [tasks.encode(victim.model.tokenizer, tasks.context(q), f" {choice}") for q in asked for choice in q.scored]
    assert {len(after) for _, after in pairs} >= {1, 2} and max(len(after) for _, after in pairs) > 8
    assert all(before[0] == 0 and 0 not in before[1:] + after for before, after in pairs)  # one BOS
    found = scoring.log_likelihoods(victim, pairs)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for (before, after), score in zip(pairs, found):
        ids = (before + after)[-97:]  # what does not fit 96 positions loses its beginning
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([ids[:-1]])).logits[0].double(), -1)[-len(after) :]
        assert score == pytest.approx(logp.gather(1, torch.tensor(after)[:, None]).sum().item(), abs=2e-4)


def test_a_context_that_does_not_fit_loses_its_beginning(victim):
    before, after = [0, *range(5, 155)], [7, 8, 9]
    (found,) = scoring.log_likelihoods(victim, [(before, after)])
    (short,) = scoring.log_likelihoods(victim, [(before[-94:], after)])
    (shorter,) = scoring.log_likelihoods(victim, [(before[-93:], after)])
    assert found == pytest.approx(short, abs=1e-5) and abs(found - shorter) > 1e-3
    with pytest.raises(ValueError, match="a choice has 97 tokens; allowed: fewer than the model's 96 positions"):
        scoring.log_likelihoods(victim, [([0], list(range(97)))])


def test_spaces_at_the_end_of_a_context_belong_to_the_choice(victim):
    tokenizer = victim.model.tokenizer
    assert tasks.encode(tokenizer, "the door:  ", "x") == tasks.encode(tokenizer, "the door:", "  x")
    before, after = tasks.encode(tokenizer, "<bos>the door:", " x")
    assert (before, after) == tasks.encode(tokenizer, "the door:", " x")  # a BOS that is written out is not doubled
    with pytest.raises(ValueError, match="has no token of its own"):
        tasks.encode(tokenizer, "the door:", "")


def test_chats_and_their_divergence_against_the_definitions(victim):
    """Sums over the response by numpy from the logits of both models; the response is cut at its block of 8 tokens."""
    model = victim.model
    other = Model(weights.initialize(jax.random.key(1), model.config), model.config, model.tokenizer, "other")
    prompts, responses = [[0, 5, 6, 7], [0, *range(5, 25)]], [[9, 10, 11], [*range(30, 42)]]
    found = scoring.response_sums(victim, other, prompts, responses)
    for prompt, response, (nll, kl) in zip(prompts, responses, found):
        ids = np.array([prompt + response[:8]])
        logits = [models.transformer.logits(m.params, model.config, ids, np.ones_like(ids, bool)) for m in (model, other)]
        rows = [np.asarray(x, np.float64)[0, len(prompt) - 1 : -1] for x in logits]
        logp, wanted = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in rows)
        assert nll == pytest.approx(-sum(logp[i, token] for i, token in enumerate(response[:8])), rel=1e-5)
        assert kl == pytest.approx(float((np.exp(wanted) * (wanted - logp)).sum()), rel=1e-4)
    same = scoring.response_sums(victim, model, prompts, responses)
    assert all(abs(kl) < 1e-4 for _, kl in same) and [x for x, _ in same] == pytest.approx([x for x, _ in found], rel=1e-6)
    assert all(np.isnan(kl) for _, kl in scoring.response_sums(victim, None, prompts, responses))
    wide = Victim(dataclasses.replace(model), dataclasses.replace(HOW, batch_size=1), 0)
    assert scoring.response_sums(wide, other, prompts, responses) == [pytest.approx(pair, rel=1e-5) for pair in found]


def harness(name, config, rows, folder, shots=0, **options):
    """lm-eval's own scores of a task of the same template: a list of (log-likelihoods, acc, acc_norm) per question; options: HFLM's."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval 0.4.13 is not installed")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    shown = {"question": "Before?", "subject": "high_school_physics", "choices": ["p", "q", "r", "s"], "text": ["p"], "answer": 3}
    for split, found in (("test", rows), ("dev", [{key: shown[key] for key in rows[0]}])):
        (folder / f"{name}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    named = {split: str(folder / f"{name}_{split}.jsonl") for split in ("test", "dev")}
    settings = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": named}, "test_split": "test"} | config
    task = ConfigurableTask(
        config=settings | {"output_type": "multiple_choice", "metric_list": [{"metric": m} for m in ("acc", "acc_norm", "acc_bytes")]}
    )
    model = HFLM(pretrained=str(folder), device="cpu", batch_size=1, dtype="float32", **options)
    found = lm_eval.simple_evaluate(model, tasks=[task], num_fewshot=shots, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return [([float(x[0]) for x in s["filtered_resps"]], s["acc"], s["acc_norm"], s["acc_bytes"]) for s in samples]


ARC_TASK = {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{answer}}", "doc_to_choice": "{{text}}"}


def test_an_exported_adapter_is_equal_to_the_harness_with_peft(victim, folder, tmp_path):
    """lm-eval 0.4.13 reads the base and our adapter (`peft=`); our side scores the merged weights, as an evaluation does."""
    config = victim.model.config
    lora = adapters.initialize(jax.random.key(3), config, 2, 4.0)
    lora = lora.replace(factors=jax.tree.map(lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), lora.factors))
    save_adapter(lora, config, str(tmp_path), base=str(folder))
    read = questions(folder)["arc"]
    defended = Victim(dataclasses.replace(victim.model, params=adapters.merge(victim.model.params, lora)), HOW, 0)
    for question, (wanted, *_) in zip(read, harness("arc", ARC_TASK, ARC, folder, peft=str(tmp_path)), strict=True):
        asked = [tasks.encode(victim.model.tokenizer, tasks.context(question, []), f" {choice}") for choice in question.scored]
        assert scoring.log_likelihoods(defended, asked) == pytest.approx(wanted, abs=2e-4)
        assert scoring.log_likelihoods(victim, asked) != pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize("shots", [0, 1])
def test_equal_to_the_harness(victim, folder, shots):
    """lm-eval 0.4.13 with its own templates on the same folder and questions, without and with an example."""
    read = questions(folder)
    mmlu = {
        "description": "The following are multiple choice questions (with answers) about high school physics.\n\n",
        "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer", "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"},
    }  # fmt: skip
    example = Question("e", "Before?", ("p", "q", "r", "s"), 3, "high_school_physics", True)
    expected = {"mmlu": harness("mmlu", mmlu, MMLU, folder, shots)}
    expected |= {"arc": harness("arc", ARC_TASK, ARC, folder)} if not shots else {}
    for name, rows in expected.items():
        for question, (wanted, *accuracies) in zip(read[name], rows, strict=True):
            before = tasks.context(question, [example] * shots)
            found = scoring.log_likelihoods(victim, [tasks.encode(victim.model.tokenizer, before, f" {c}") for c in question.scored])
            assert found == pytest.approx(wanted, abs=2e-4)
            assert list(tasks.correct(question, found).values()) == [bool(x) for x in accuracies]
