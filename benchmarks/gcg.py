"""Evaluation of GCG's candidates and its token gradient, ours against nanoGCG 0.3.0, on the same random Llama weights and candidates.

    pip install --no-deps --target FOLDER nanogcg==0.3.0 && PYTHONPATH=FOLDER python benchmarks/gcg.py [--repeats 5] [--candidates 128]

--no-deps and a folder of its own, as nanoGCG asks for transformers 4.47 and would replace the one that dat_jax needs; it runs with 5. Both
sides take turns in one process. Printed: how far the losses and the gradients are apart (they must agree), candidates per second, gradients
per second, and the medians of the per-pair ratios of wall and of processor time (which means something on a busy machine, too); --threads
is the number of cores that both may use. nanoGCG runs as its own code calls it, without its cache of the prompt's
beginning, which changes losses. It computes the head at all positions and ours at the target's. Our prompt block is as long as the prompt,
so neither side computes padding. Needs torch (the test extra) and scipy, which nanoGCG imports.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import torch
import transformers

import dat_jax.models
from dat_jax.attacks import gcg
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data.behaviors import Behavior
from dat_jax.training.network import Network

SIZES = {"vocab_size": 4000, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
REQUEST, TARGET, SUFFIX = 20, 24, 20  # words


def make_folder(folder: str) -> None:
    """Writes a random Llama with a tokenizer of one token per word."""
    words = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>", "x", *(f"w{i}" for i in range(SIZES["vocab_size"] - 6))]
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(words[:5])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    # Logits of trained models' size: with transformers' small weights the loss would hardly depend on the prompt.
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.08)).save_pretrained(folder)


class Peer:
    """nanoGCG's own functions, on a request whose suffix they search."""

    def __init__(self, folder: str, request: str, target: str) -> None:
        import nanogcg.gcg

        logging.getLogger("nanogcg").setLevel(logging.ERROR)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
        start = " ".join(["x"] * SUFFIX)
        config = nanogcg.gcg.GCGConfig(num_steps=1, search_width=2, optim_str_init=start, use_prefix_cache=False, verbosity="ERROR")
        self.gcg = nanogcg.gcg.GCG(model, self.tokenizer, config)
        self.gcg.run(request + " {optim_str}", target + " <end>")  # one step: it tokenizes the texts and keeps their embeddings

    @torch.no_grad()
    def losses(self, suffixes_CxS: np.ndarray, size: int) -> np.ndarray:
        """The loss of each candidate, `size` at a time."""
        count, chosen = len(suffixes_CxS), self.gcg.embedding_layer(torch.tensor(suffixes_CxS))
        before, after, target = (e.repeat(count, 1, 1) for e in (self.gcg.before_embeds, self.gcg.after_embeds, self.gcg.target_embeds))
        return self.gcg._compute_candidates_loss_original(size, torch.cat([before, chosen, after, target], dim=1)).numpy()

    def gradient(self, suffix_S: np.ndarray) -> np.ndarray:
        """The gradient with respect to the one-hot tokens of a suffix, SxV."""
        return self.gcg.compute_token_gradient(torch.tensor(suffix_S[None]))[0].numpy()


class Ours:
    """The same of dat_jax."""

    def __init__(self, folder: str, request: str, target: str, size: int) -> None:
        P = len(request.split()) + SUFFIX + 3  # with the marks of the chat template
        how = Decoding(P, len(target.split()) + 1, 1, size, 0.0, "user", None)
        self.victim, self.settings = Victim(dat_jax.models.load(folder), how, 0), gcg.Settings(batch_size=size)
        self.chat = gcg.begin(Behavior("", request, (target,), ("",)), self.victim, self.settings)
        assert self.chat.rows.tokens_BxT.shape[1] == P + how.response_length and self.chat.rows.valid_BxT.all()
        network = Network(self.victim.model.params, None, self.victim.model.config, P)
        self._gradient = jax.jit(lambda rows, columns_S: gcg.token_gradient(network, rows, None, 0.0, columns_S))

    def losses(self, suffixes_CxS: np.ndarray, size: int) -> np.ndarray:
        """The loss of each candidate; `size` was given before."""
        del size
        return gcg.losses_of(self.chat, self.victim, self.settings, suffixes_CxS)

    def gradient(self, suffix_S: np.ndarray) -> np.ndarray:
        """The gradient with respect to the one-hot tokens of a suffix, SxV."""
        rows, _ = gcg._rows(self.chat, self.victim, suffix_S[None])
        return np.asarray(self._gradient(jax.tree.map(jnp.asarray, rows), gcg._columns(self.chat, self.victim)[0])[0])


def main() -> None:
    """Lets both sides take turns and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 5), ("candidates", 128), ("batch", 64), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])  # before jax and torch start threads of their own
    torch.set_num_threads(flags.threads)
    rng = np.random.default_rng(0)
    request, target = (" ".join(f"w{i}" for i in rng.integers(0, SIZES["vocab_size"] - 6, length)) for length in (REQUEST, TARGET))
    with tempfile.TemporaryDirectory() as folder:
        make_folder(folder)
        sides: dict[str, Any] = {"nanoGCG": Peer(folder, request, target), "ours": Ours(folder, request, target, flags.batch)}
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[dict[str, float]]]] = {what: {name: [] for name in sides} for what in ("losses", "gradient")}
    apart = {"losses": 0.0, "gradient": 0.0}
    for repeat in range(-1, flags.repeats):  # the first round compiles
        suffixes_CxS = rng.integers(6, SIZES["vocab_size"], (flags.candidates, SUFFIX))
        for what, given in (("losses", (suffixes_CxS, flags.batch)), ("gradient", (suffixes_CxS[0],))):
            found = {}
            for name, side in sides.items():
                started = {clock: read() for clock, read in clocks.items()}
                found[name] = getattr(side, what)(*given)
                if repeat >= 0:
                    seconds[what][name].append({clock: read() - started[clock] for clock, read in clocks.items()})
            scale = 1.0 if what == "losses" else np.abs(found["nanoGCG"]).max()
            apart[what] = max(apart[what], float(np.abs(found["ours"] - found["nanoGCG"]).max() / scale))
            if what == "losses":
                spread, lowest = np.ptp(found["ours"]), {name: int(np.argmin(losses)) for name, losses in found.items()}
                assert len(set(lowest.values())) == 1, f"another candidate has the lowest loss: {lowest}"
    print(f"{flags.candidates} candidates, {flags.batch} at a time; their losses spread over {spread:.3f} nats per token")
    print(f"losses differ by at most {apart['losses']:.1e} nats per token, gradients by {apart['gradient']:.1e} of the largest entry")
    for what, units, unit in (("losses", flags.candidates, "candidates per second"), ("gradient", 1, "gradients per second")):
        rates = {name: round(units / statistics.median(lap["wall"] for lap in laps), 2) for name, laps in seconds[what].items()}
        pairs = list(zip(seconds[what]["nanoGCG"], seconds[what]["ours"], strict=True))
        ratios = {clock: round(statistics.median(a[clock] / b[clock] for a, b in pairs), 2) for clock in clocks}
        print(f"{unit}: {rates}; nanoGCG's time over ours, median ratio: {ratios}")


if __name__ == "__main__":
    main()
