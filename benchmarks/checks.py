"""How long the checks at a start take, each by itself, in seconds of a processor.

    python benchmarks/checks.py --model=FOLDER

The user's files are made: 400 behaviors with targets, 20,000 chats of 2 KB, 200 benign prompts; and a finished run of 3 models, 4 attacks
and 400 answers each. FOLDER is a model with its tokenizer.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from etils import epath

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from dat_jax import config as config_lib
from dat_jax.data import answers, chat_templates, files
from dat_jax.models import huggingface, tensors
from dat_jax.stations import inputs, lock, workdir
from dat_jax.stations.subjects import check_sources

BEHAVIORS, CHATS, CHAT_LENGTH = 400, 20_000, 2000


def bring(folder: pathlib.Path, model: str):
    """Writes a user's files and returns the configuration that reads them."""
    rows = [f"Paint the drum number {i} in red and tell how,b{i}" for i in range(BEHAVIORS)]
    for name, prefix in (("train", ""), ("eval", "Please: ")):
        text = "\n".join(prefix + row.replace(",b", f",{name}_b") for row in rows)
        (folder / f"{name}.csv").write_text(f"Behavior,BehaviorID\n{text}\n")
        (folder / f"{name}.json").write_text(json.dumps({f"{name}_b{i}": f"Sure, take a brush {i}" for i in range(BEHAVIORS)}))
    chats = ({"prompt": f"What is {i}?", "response": f"It is {i}. " * (CHAT_LENGTH // 12)} for i in range(CHATS))
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "benign.jsonl").write_text("".join(json.dumps({"id": i, "prompt": f"What is {i}?"}) + "\n" for i in range(200)))
    config = config_lib.defaults()
    config.training.methods, config.target.model = ("undefended", "cat"), model
    config.data.update({"behaviors": f"{folder}/train.csv", "targets": f"{folder}/train.json", "chats": f"{folder}/chats.jsonl"})
    config.data.update({"eval_behaviors": f"{folder}/eval.csv", "eval_targets": f"{folder}/eval.json", "benign": f"{folder}/benign.jsonl"})
    return config


def answered(folder: epath.Path) -> None:
    """Writes the answers of a finished run."""
    for model in ("undefended", "cat", "dat"):
        for attack in range(4):
            lines = [{"behavior": f"b{i}", "prompt": "p" * 200, "response": "r" * 500} for i in range(BEHAVIORS)]
            answers.write(answers.Answers(folder / model / f"a{attack}", {"done": {f"b{i}": "1" for i in range(BEHAVIORS)}}, lines))


def weights(model: pathlib.Path) -> None:
    """Looks for NaN in all weights, as loading does."""
    with tensors.opened(model) as found:
        for name, tensor in found.slices.items():
            rows, step = tensor.get_shape()[0], max(1, tensors.BLOCK_BYTES // (4 * max(1, tensor.get_shape()[-1])))
            for start in range(0, rows, step):
                assert tensors.finite(tensor[start : min(start + step, rows)]), name


def reading(model: pathlib.Path) -> None:
    """Reads the same pieces and looks at nothing: what `weights` takes without the check."""
    check, tensors.finite = tensors.finite, lambda x: x.nbytes >= 0
    try:
        weights(model)
    finally:
        tensors.finite = check


def timed(call: Callable[[], object]) -> float:
    """Seconds of a processor, which other programs on the machine do not change as much as the time on the wall."""
    started = time.process_time()
    call()
    return time.process_time() - started


def measured(folder: pathlib.Path, model: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Each check and its seconds, in the order of a start."""

    config = bring(folder, str(model))
    run = epath.Path(folder / "run")
    answered(run / "answers")
    tokenizer = huggingface.load_tokenizer(model, "llama")
    yield "values of all settings", timed(lambda: config_lib.validate(config))
    yield "files that are there", timed(lambda: inputs.check_files(config))
    huggingface.read_config(model)  # imports transformers, which every start does
    yield "the model's config.json", timed(lambda: check_sources(config))
    asked = [{"role": "user", "content": "a"}]
    started = os.times()
    chat_templates.render(tokenizer, asked, True)
    chat_templates._PROCESS._close(chat_templates._PROCESS._running)
    yield "the process that renders chat templates, started and ended", sum(os.times()[:4]) - sum(started[:4])
    chat_templates._PROCESS._running = None
    yield f"checksums of the user's files ({CHATS} chats) and of the model", timed(lambda: workdir.claim(run, config))
    yield "the same again, compared with the work directory", timed(lambda: workdir.check_claim(run, config))

    def locked() -> None:
        with lock.held(run):
            pass

    yield "the lock, taken and given back", timed(locked)
    data = config.data
    lines = lambda: list(files.read_jsonl(data.chats))  # noqa: E731
    plain = timed(lambda: [json.loads(line) for line in pathlib.Path(data.chats).read_text().splitlines()])
    yield f"lines of {CHATS} chats, above reading their JSON ({plain:.2f} s)", timed(lines) - plain
    yield "a finished run's answers and their checksums", timed(lambda: [answers.read_all(path) for path in (run / "answers").iterdir()])
    reading(model)  # into the page cache
    plain = timed(lambda: reading(model))
    yield f"NaN and infinities in the weights, above reading them ({plain:.2f} s)", timed(lambda: weights(model)) - plain


def main() -> None:
    """Prints a row per check and their sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=pathlib.Path, help="a Hugging Face folder with weights and tokenizer")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        total = 0.0
        for name, seconds in measured(pathlib.Path(folder), model):
            total += seconds
            print(f"{seconds:7.3f} s  {name}", flush=True)
        print(f"{total:7.3f} s  together")


if __name__ == "__main__":
    main()
