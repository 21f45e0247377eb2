"""The sampler's settings, its model, and prompts that were sampled."""

import dataclasses
import json
import pathlib

from dat_jax.data.behaviors import Behavior
from dat_jax.data.infilled import read_infilled
from dat_jax.data.prompts import PromptRecord, check_pool, read_records, write_records
from dat_jax.diffusion.denoiser import mask_id
from dat_jax.models import families
from malformed import Row, file, setting

SETTINGS, POOL, INFILLED = "The sampler's settings", "Sampled prompts", "Prompts infilled by others"
nan = float("nan")
RECORD = PromptRecord("a", "p", "r", 0, "m", {}, None, 1, None, True)
BEHAVIORS = [Behavior("paint", "Paint the drum", ("t",), ("n",))]
HEAD = "original_prompt,inpainted_prompt\n"


def of_record(changes, message):
    """A line of prompts.jsonl."""
    line = {key: value for key, value in (dataclasses.asdict(RECORD) | changes).items() if value != "gone"}
    return file(POOL, read_records, "prompts.jsonl", line, message, f"a line with {changes}")


def of_infilled(content, message):
    return file(INFILLED, lambda path: read_infilled(path, BEHAVIORS), "i.csv", content, message)


def pool(what, message, damage):
    """A finished pool that is damaged."""

    def run(folder: pathlib.Path) -> None:
        from dat_jax.data import manifest

        manifest.write(folder / "cost.json", {"samples": 1}, {"prompts.jsonl": write_records(folder / "prompts.jsonl", [RECORD])})
        damage(folder)
        check_pool(folder)

    return Row(POOL, what, run, message)


def edit(name, old, new):
    def damage(folder):
        (folder / name).write_text((folder / name).read_text().replace(old, new, 1))

    return damage


CAUSAL = {
    "model_type": "llama", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4,
}  # fmt: skip

ROWS = [
    setting(SETTINGS, "sampler.model", "", "config.sampler.model is ''; allowed: a path or hub id: prompts are sampled"),
    setting(SETTINGS, "sampler.judge", "llama", "config.sampler.judge is 'llama'; allowed: '' or one of ..."),
    setting(SETTINGS, "sampler.samples", 0, 'config.sampler.samples is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "sampler.samples", 10**9, 'config.sampler.samples is 1000000000; allowed: an integer up to 16777216'),
    setting(SETTINGS, "sampler.keep", 0, 'config.sampler.keep is 0; allowed: an integer from 1 to samples (64)'),
    setting(SETTINGS, "sampler.keep", 100, 'config.sampler.keep is 100; allowed: an integer from 1 to samples (64)'),
    setting(SETTINGS, "sampler.prompt_tokens", 4, 'config.sampler.prompt_tokens is 4; allowed: a list such as (8, 32)'),
    setting(SETTINGS, "sampler.prompt_tokens", (4,), 'config.sampler.prompt_tokens is (4,); allowed: two numbers, smallest and largest'),
    setting(SETTINGS, "sampler.prompt_tokens", (4, 8, 16), 'config.sampler.prompt_tokens is (4, 8, 16); allowed: two numbers, smallest and largest'),
    setting(SETTINGS, "sampler.prompt_tokens", ("a", "b"), "config.sampler.prompt_tokens is 'a'; allowed: an integer up to 1048576"),
    setting(SETTINGS, "sampler.prompt_tokens", (5, 2), 'config.sampler.prompt_tokens is (5, 2); allowed: two integers, 1 <= shortest <= longest'),
    setting(SETTINGS, "sampler.prompt_tokens", (8, 10**8), 'config.sampler.prompt_tokens is 100000000; allowed: an integer up to 1048576'),
    setting(SETTINGS, "sampler.prompt_lengths", "x", "config.sampler.prompt_lengths is 'x'; allowed: uniform | behaviors"),
    setting(SETTINGS, "sampler.steps", 0, 'config.sampler.steps is 0; allowed: at least 1'),
    setting(SETTINGS, "sampler.remasking", "all", "config.sampler.remasking is 'all'; allowed: random, low_confidence, margin, entropy, ancestral"),
    setting(SETTINGS, "sampler.temperature", float("inf"), 'config.sampler.temperature is inf; allowed: a finite number'),
    setting(SETTINGS, "sampler.temperature", -1.0, 'config.sampler.temperature is -1.0; allowed: at least 0'),
    setting(SETTINGS, "sampler.top_p", nan, 'config.sampler.top_p is nan; allowed: a finite number'),
    setting(SETTINGS, "sampler.condition_remasking", 2.0, 'config.sampler.condition_remasking is 2.0; allowed: at least 0 and at most 1'),
    setting(SETTINGS, "sampler.cfg_scale", -1.0, 'config.sampler.cfg_scale is -1.0; allowed: at least 0'),
    setting(SETTINGS, "sampler.acceptance", "always", "config.sampler.acceptance is 'always'; allowed: threshold, factor, entropy, count"),
    setting(SETTINGS, "sampler.cache_refresh", 4, "config.sampler.cache_refresh is 4; allowed: 1 with acceptance='quota'"),
    setting(SETTINGS, "sampler.batch_size", 0, 'config.sampler.batch_size is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "sampler.batch_size", 10**9, 'config.sampler.batch_size is 1000000000; allowed: an integer up to 1048576'),
    setting(SETTINGS, "sampler.likelihood_samples", -1, 'config.sampler.likelihood_samples is -1; allowed: an integer >= 0'),
    setting(SETTINGS, "sampler.likelihood_scheme", "x", "config.sampler.likelihood_scheme is 'x'; allowed: plain | reference | stratified | antithetic"),
    setting(SETTINGS, "sampler.selection", "best", "config.sampler.selection is 'best'; allowed: random, likelihood, stratified, compliance, diversity, combined"),
    setting(SETTINGS, "sampler.diversity", nan, 'config.sampler.diversity is nan; allowed: a finite number'),
    setting(SETTINGS, "sampler.consistency", -0.1, 'config.sampler.consistency is -0.1; allowed: a number >= 0, in nats per token (0: not asked)'),
    setting(SETTINGS, "sampler.given", -1, 'config.sampler.given is -1; allowed: an integer >= 0'),
    setting(SETTINGS, "sampler.refresh_every", -1, 'config.sampler.refresh_every is -1; allowed: an integer >= 0'),
    setting(SETTINGS, "sampler.preference.steps", 50, 'config.sampler.preference.steps is 50; allowed: 0 with sampler.refresh_every = 0: no round is drawn for which to adapt the sampler'),
    setting(SETTINGS, "sampler.preference.learning_rate", 0.0, 'config.sampler.preference.learning_rate is 0.0; allowed: a number > 0'),
    setting(SETTINGS, "sampler.preference.draws", 10**9, 'config.sampler.preference.draws is 1000000000; allowed: an integer up to 1048576'),
    setting(SETTINGS, "sampler.preference.rank", 0, 'config.sampler.preference.rank is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "sampler.response_tokens", 0, 'config.sampler.response_tokens is 0; allowed: an integer >= 1'),
    Row(SETTINGS, "a Llama as config.sampler.model", lambda folder: mask_id(families.read(CAUSAL)), "config.sampler.model: 'llama' is not a masked-diffusion LM (mask_token=None, causal=True); allowed: LLaDA, Dream"),
    file(POOL, read_records, "prompts.jsonl", None, 'FOLDER/prompts.jsonl: no such file'),
    file(POOL, read_records, "prompts.jsonl", "", 'FOLDER/prompts.jsonl: the file is empty'),
    file(POOL, read_records, "prompts.jsonl", json.dumps(dataclasses.asdict(RECORD))[:-20], 'FOLDER/prompts.jsonl, line 1: not JSON: Expecting property name enclosed in double quotes'),
    of_record({"prompt": "gone"}, "FOLDER/prompts.jsonl, line 1: no key 'prompt'; found: behavior_id, response, seed, sampler, settings, log_likelihood, tokens, compliance, selected, consistency"),
    of_record({"prompt": 3}, 'FOLDER/prompts.jsonl, line 1: prompt is 3; allowed: str'),
    of_record({"selected": "false"}, "FOLDER/prompts.jsonl, line 1: selected is 'false'; allowed: bool"),
    of_record({"seed": 0.5}, 'FOLDER/prompts.jsonl, line 1: seed is 0.5; allowed: int'),
    of_record({"settings": []}, 'FOLDER/prompts.jsonl, line 1: settings is []; allowed: dict'),
    of_record({"log_likelihood": "low"}, "FOLDER/prompts.jsonl, line 1: log_likelihood is 'low'; allowed: float | None"),
    of_record({"score": 1}, "FOLDER/prompts.jsonl, line 1: unknown key 'score'; allowed: behavior_id, prompt, response, seed, sampler, settings, log_likelihood, tokens, compliance, selected, consistency"),
    pool("cost.json is gone", 'FOLDER/cost.json is gone, or was not written before a kill: prompts.jsonl is there; run --mode=sample again', lambda folder: (folder / "cost.json").unlink()),
    pool("prompts.jsonl is gone", 'FOLDER/prompts.jsonl is gone: cost.json beside it says that 1 lines, 192 bytes with the checksum 9d06d550b82183cc1a47304faa77739f were written; put it back as it was, or delete it and cost.json to have them made again from the samples', lambda folder: (folder / "prompts.jsonl").unlink()),
    pool("prompts.jsonl is cut at a line's end", 'FOLDER/prompts.jsonl was cut, damaged or edited: it has 0 lines, 0 bytes with the checksum cae66941d9efbd404e4d88758ea67670; cost.json beside it says that 1 lines, 192 bytes with the checksum 9d06d550b82183cc1a47304faa77739f were written; put it back as it was, or delete it and cost.json to have them made again from the samples', lambda folder: (folder / "prompts.jsonl").write_text("")),
    pool("a prompt was edited", 'FOLDER/prompts.jsonl was cut, damaged or edited: it has 1 lines, 192 bytes with the checksum 33f12b3aa083e16df572554550fb1a48; cost.json beside it says that 1 lines, 192 bytes with the checksum 9d06d550b82183cc1a47304faa77739f were written; put it back as it was, or delete it and cost.json to have them made again from the samples', edit("prompts.jsonl", '"p"', '"q"')),
    pool("cost.json was edited", 'FOLDER/cost.json was damaged or edited: its content has the checksum ..., and ... was written; put it back as it was, or delete it to have it made again', edit("cost.json", '"samples": 1', '"samples": 2')),
    pool("cost.json is []", 'FOLDER/cost.json holds a JSON list; allowed: the object that was written there; put it back as it was, or delete it to have it made again', lambda folder: (folder / "cost.json").write_text("[]")),
    of_infilled(None, 'FOLDER/i.csv: no such file'),
    of_infilled("prompt,infilled\na,b\n", "FOLDER/i.csv, line 1: no column 'original_prompt'; found: prompt, infilled"),
    of_infilled(HEAD, 'FOLDER/i.csv: a header and no rows'),
    of_infilled(HEAD + "Paint the drum,\n", "FOLDER/i.csv, line 2: inpainted_prompt is ''; allowed: a non-empty text"),
    of_infilled(HEAD + "Wash it,x\n", "FOLDER/i.csv: none of its 1 rows is of an evaluation behavior; original_prompt must be its text, e.g. 'Paint the drum'"),
    of_infilled(HEAD + "Paint the drum,x,y\n", "FOLDER/i.csv, line 2: 3 fields; allowed: the header's 2"),
]
