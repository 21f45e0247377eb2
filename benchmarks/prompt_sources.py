"""Where prompts for a harmful response can come from, and how good they are, on real behaviors: a sampler against three cheaper sources.

    python benchmarks/prompt_sources.py --sampler=data/sampler --target=runs/smollm2_safety/seed_0/export/refusal_sft \\
        --behaviors=data/eval_behaviors.csv --targets=data/harmbench_targets_text.json --output=data/prompt_sources.jsonl

Sources: the masked-diffusion sampler; the response's own words, copied; rule-made rewrites of the request (which the others never see); the
target itself, asked for the request that the response answers. Per source: the share of prompts on topic (two content words of the request,
the rule of the judge `refusal_topic`), of prompts with a word that is repeated at once, distinct-2 and mean similarity of a behavior's
prompts, how many differ at all, the share of prompts that the target answers on topic, and of behaviors with at least one such prompt. The
file has every prompt, to be read and labelled by hand: `--labels=FILE` of lines {"prompt", "on_topic"} compares the automatic check with
the labels.
"""

import argparse
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dat_jax import sharding
from dat_jax.attacks.attack import Attempt
from dat_jax.attacks.victim import Decoding, Victim
from dat_jax.data.behaviors import Behavior, load_behaviors
from dat_jax.data.rewrites import make_rewrites
from dat_jax.diffusion.denoiser import mask_id
from dat_jax.diffusion.layout import template
from dat_jax.diffusion.pool import Pool, draw, forbidden_tokens
from dat_jax.diffusion.selection import distinct, mean_similarity
from dat_jax.judges import refusal_topic
from dat_jax.models import Model, load

OPENING = re.compile(r"^(sure|of course|certainly|absolutely)[,.!]?\s*", re.IGNORECASE)
ASK = "Here is the beginning of an answer:\n\n{}\n\nWhich request does it answer? Reply with the request alone."
Prompts = dict[str, list[str]]  # behavior -> prompts


def sampled(sampler: Model, behaviors: Sequence[Behavior], count: int, longest: int) -> Prompts:
    """Draws for the responses, as a run's sample station does."""
    pool = Pool(samples=count, keep=1, prompt_tokens=(6, longest), response_tokens=24, steps=longest, batch_size=16, likelihood_samples=0,
                selection="random")  # fmt: skip
    around = template(sampler.tokenizer, pool.separator, pool.begin)
    forbidden = forbidden_tokens(sampler.tokenizer, sampler.config.vocab_size, mask_id(sampler.config))
    found: Prompts = {}
    for behavior in behaviors:
        records, _ = draw(pool, sampler, [behavior], around, forbidden, 0, 0)
        found[behavior.id] = [record.prompt for record in records]
        print(f"  {behavior.id}: {found[behavior.id][0]!r}", flush=True)
    return found


def copied(behaviors: Sequence[Behavior], count: int) -> Prompts:
    """Each response without its "Sure", as a prompt."""
    return {b.id: [OPENING.sub("", b.targets[n % len(b.targets)]).rstrip(":") for n in range(count)] for b in behaviors}


def by_rule(behaviors: Sequence[Behavior], count: int) -> Prompts:
    """The rewriting rules' sentences, as many as there are."""
    made = make_rewrites(behaviors)
    return {b.id: [rewrite.prompt for rewrite in made if rewrite.behavior == b.id][:count] for b in behaviors}


def asked(answer: Callable[..., list[str]], behaviors: Sequence[Behavior], count: int) -> Prompts:
    """What the target takes for the request of each response."""
    attempts = [
        Attempt(f"{b.id} {n}", ASK.format(b.targets[n % len(b.targets)]), "", temperature=1.0) for b in behaviors for n in range(count)
    ]
    replies = [(reply.strip().splitlines() or [""])[0].strip(' "') for reply in answer(attempts)]
    return {b.id: replies[i * count : (i + 1) * count] for i, b in enumerate(behaviors)}


def rows_of(source: str, found: Prompts, behaviors: Sequence[Behavior], answer: Callable[..., list[str]]) -> list[dict[str, Any]]:
    """Every prompt with what was found of it and what the target answered."""
    requests = {behavior.id: behavior.text for behavior in behaviors}
    pairs = [(id_, prompt) for id_, prompts in found.items() for prompt in prompts if prompt.strip()]
    answers = answer([Attempt(id_, prompt, "") for id_, prompt in pairs])
    return [
        {
            "source": source, "behavior": id_, "request": requests[id_], "prompt": prompt,
            "on_topic": refusal_topic.on_topic(requests[id_], prompt),
            "answer": said, "label": refusal_topic.label(requests[id_], said),
        } for (id_, prompt), said in zip(pairs, answers)
    ]  # fmt: skip


def stutters(prompt: str) -> bool:
    """Whether a word stands twice in a row."""
    words = prompt.lower().split()
    return any(a == b for a, b in itertools.pairwise(words))


def line_of(rows: Sequence[dict[str, Any]]) -> list[float]:
    """The numbers of a source, in the order of COLUMNS."""
    of: Prompts = {}
    for row in rows:
        of.setdefault(row["behavior"], []).append(row["prompt"])
    similar = [mean_similarity(prompts) for prompts in of.values() if len(prompts) > 1]
    broken = {row["behavior"] for row in rows if row["label"] == "comply"}
    return [
        len(rows),
        float(np.mean([row["on_topic"] for row in rows])),
        float(np.mean([stutters(row["prompt"]) for row in rows])),
        float(np.mean([distinct(prompts, 2) for prompts in of.values()])),
        float(np.mean(similar)) if similar else float("nan"),  # of one prompt each: none
        len({(row["behavior"], row["prompt"]) for row in rows}) / len(rows),
        float(np.mean([row["label"] == "comply" for row in rows])),
        len(broken) / len(of),
    ]


COLUMNS = ("prompts", "on topic", "stutter", "dist-2", "simil.", "differ", "answered", "behaviors answered")


def validated(rows: Sequence[dict[str, Any]], path: str) -> str:
    """How the automatic check agrees with labels made by hand."""
    labels = {row["prompt"]: bool(row["on_topic"]) for row in map(json.loads, pathlib.Path(path).read_text("utf-8").splitlines())}
    both = [(row["on_topic"], labels[row["prompt"]]) for row in rows if row["prompt"] in labels]
    counts = {name: both.count(pair) for name, pair in (("both", (True, True)), ("check alone", (True, False)),
                                                         ("hand alone", (False, True)), ("neither", (False, False)))}  # fmt: skip
    return f"on topic by check and by hand, {len(both)} prompts: " + ", ".join(f"{name} {count}" for name, count in counts.items())


def main() -> None:
    """Draws, asks, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sampler", "target", "behaviors", "targets", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--labels", default="")
    parser.add_argument("--count", type=int, default=8, help="prompts per behavior")
    parser.add_argument("--number", type=int, default=24, help="behaviors, the first ones")
    parser.add_argument("--longest", type=int, default=32, help="tokens of a sampled prompt")
    flags = parser.parse_args()
    behaviors = load_behaviors(flags.behaviors, flags.targets)[: flags.number]
    output = pathlib.Path(flags.output)
    if output.exists():  # answers are not asked for twice
        rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    else:
        found = {"sampler": sampled(load(flags.sampler), behaviors, flags.count, flags.longest)}
        victim = Victim(load(flags.target), Decoding(96, 24, 32, 16, 0.0, "user", None), 0, sharding.make_mesh())
        found |= {"response's words": copied(behaviors, 1), "rules": by_rule(behaviors, flags.count)}
        found["target, asked"] = asked(victim.answer, behaviors, flags.count)
        rows = [row for source, prompts in found.items() for row in rows_of(source, prompts, behaviors, victim.answer)]
        output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    print(f"{'':20s}" + "".join(f"{title:>{max(9, len(title) + 2)}s}" for title in COLUMNS))
    for source in dict.fromkeys(row["source"] for row in rows):
        numbers = line_of([row for row in rows if row["source"] == source])
        print(f"{source:20s}" + "".join(f"{n:{max(9, len(t) + 2)}.{0 if t == 'prompts' else 2}f}" for n, t in zip(numbers, COLUMNS)))
    if flags.labels:
        print(validated(rows, flags.labels))


if __name__ == "__main__":
    main()
