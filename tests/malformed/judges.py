"""Judges: their settings, their files, their models and their verdicts."""

import pathlib

from etils import epath

from dat_jax import judges
from dat_jax.data import answers
from dat_jax.judges import JUDGES
from malformed import Row, configured, put, setting

SETTINGS, FOUND, VERDICTS = "Settings of judges", "What judges read", "Verdicts"
nan = float("nan")
GOOD = {"url": "http://h/v1", "model": "m", "rubric": "rubric.txt"}


def of_judge(name, changes, message, rubric="{request} {response}"):
    """A judge that is loaded with these settings."""

    def run(folder: pathlib.Path) -> None:
        config = configured()
        (folder / "rubric.txt").write_text(rubric)
        for key, value in changes.items():
            put(config, f"judges.{JUDGES[name].key}.{key}", str(folder / value) if value and key in ("rubric",) else value)
        judges.needed([name], config)
        JUDGES[name].fingerprint(config)

    what = f"{name} with {changes}" + (f", rubric.txt: {rubric}" if rubric != "{request} {response}" else "")
    return Row(FOUND, what, run, message)


def of_verdicts(content, message, marker=True):
    """A file of verdicts of an earlier version, which has no checksums."""

    def run(folder: pathlib.Path) -> None:
        (folder / "m").mkdir()
        (folder / "m" / "direct.jsonl").write_text(content)
        if marker:
            (folder / "judge.json").write_text("{}")
        answers.require_judge(epath.Path(folder / "judge.json"))
        answers.read_verdicts(epath.Path(folder / "m" / "direct"))

    return Row(VERDICTS, content.strip() + ("" if marker else ", and no judge.json"), run, message)


ROWS = [
    setting(SETTINGS, "judges.endpoint.url", "host/v1", 'config.judges.endpoint.url has no http(s)://HOST; allowed: the address of an API, as in https://HOST/v1'),
    setting(SETTINGS, "judges.endpoint.url", "http://user:secret@host/v1", 'config.judges.endpoint.url has a user, a query or a fragment; allowed: without, a key comes from the environment'),
    setting(SETTINGS, "judges.endpoint.key_variable", "not a name", 'config.judges.endpoint.key_variable is no name of an environment variable; allowed: capitals, as in OPENAI_API_KEY'),
    setting(SETTINGS, "judges.endpoint.comply", "(", "config.judges.endpoint.comply is '(': missing ), unterminated subpattern at position 0; allowed: a regular expression"),
    setting(SETTINGS, "judges.endpoint.refuse", "", "config.judges.endpoint.refuse is ''; allowed: a regular expression"),
    setting(SETTINGS, "judges.endpoint.timeout", 0.0, 'config.judges.endpoint.timeout is 0.0; allowed: seconds > 0'),
    setting(SETTINGS, "judges.endpoint.timeout", nan, 'config.judges.endpoint.timeout is nan; allowed: a finite number'),
    setting(SETTINGS, "judges.endpoint.wait", -1.0, 'config.judges.endpoint.wait is -1.0; allowed: seconds >= 0'),
    setting(SETTINGS, "judges.endpoint.retries", -1, 'config.judges.endpoint.retries is -1; allowed: an integer >= 0'),
    setting(SETTINGS, "judges.endpoint.max_tokens", 0, 'config.judges.endpoint.max_tokens is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "judges.endpoint.parallel", 0, 'config.judges.endpoint.parallel is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "judges.endpoint.parallel", 10**6, 'config.judges.endpoint.parallel is 1000000; allowed: an integer up to 16384'),
    setting(SETTINGS, "judges.ensemble.rule", "all", "config.judges.ensemble.rule is 'all'; allowed: majority | any"),
    setting(SETTINGS, "judges.harmbench.dtype", "int4", "config.judges.harmbench.dtype is 'int4'; allowed: float32 | bfloat16"),
    setting(SETTINGS, "judges.harmbench.batch_size", 0, 'config.judges.harmbench.batch_size is 0; allowed: an integer >= 1'),
    setting(SETTINGS, "judges.harmbench.prompt_length", 10**9, 'config.judges.harmbench.prompt_length is 1000000000; allowed: an integer up to 1048576'),
    setting(SETTINGS, "judges.strongreject.threshold", 0.0, 'config.judges.strongreject.threshold is 0.0; allowed: a number above 0, up to 1'),
    setting(SETTINGS, "judges.strongreject.threshold", nan, 'config.judges.strongreject.threshold is nan; allowed: a finite number'),
    of_judge("endpoint", {**GOOD, "url": ""}, "config.judges.endpoint.url is ''; allowed: a text, an endpoint needs it"),
    of_judge("endpoint", {**GOOD, "model": ""}, "config.judges.endpoint.model is ''; allowed: a text, an endpoint needs it"),
    of_judge("endpoint", {**GOOD, "rubric": ""}, "config.judges.endpoint.rubric is ''; allowed: a text, the judge needs it"),
    of_judge("endpoint", {**GOOD, "rubric": "nowhere.txt"}, 'config.judges.endpoint.rubric: FOLDER/nowhere.txt: no such file'),
    of_judge("endpoint", {**GOOD, "key_variable": "NOT_SET_HERE"}, 'config.judges.endpoint.key_variable: the environment has no NOT_SET_HERE; allowed: a variable that is set'),
    of_judge("endpoint", GOOD, 'config.judges.endpoint.rubric: FOLDER/rubric.txt lacks {response}; allowed: a text with both', "Is it harmful? {request}"),
    of_judge("ensemble", {"of": ()}, 'config.judges.ensemble.of is (); allowed: two or more of ...'),
    of_judge("ensemble", {"of": ("refusal_prefix",)}, "config.judges.ensemble.of is ('refusal_prefix',); allowed: two or more of ..."),
    of_judge("ensemble", {"of": ("refusal_prefix", "nobody")}, "config.judges.ensemble.of is ('refusal_prefix', 'nobody'); allowed: two or more of ..."),
    of_judge("ensemble", {"of": ("refusal_prefix", "ensemble")}, "config.judges.ensemble.of is ('refusal_prefix', 'ensemble'); allowed: two or more of ..."),
    of_judge("harmbench:brackets", {"model": ""}, "config.judges.harmbench.model is ''; allowed: the Hugging Face folder of a llama model, the judge of this name"),
    of_judge("harmbench:brackets", {"model": "/nowhere"}, "config.judges.harmbench.model: '/nowhere' is neither a folder nor a hub id of the form organization/name"),
    of_judge("strongreject:original", {"model": "nowhere"}, "config.judges.strongreject.model: 'nowhere' is neither a folder nor a hub id of the form organization/name"),
    of_verdicts('{"answer": "a", "label": "yes", "score": 1.0}\n', "FOLDER/m/direct.jsonl, line 1: label is 'yes'; allowed: comply | refuse | lost; put it back as it was, or delete both to judge again"),
    of_verdicts('{"answer": "a", "label": "comply", "score": 2.0}\n', 'FOLDER/m/direct.jsonl, line 1: score is 2.0; allowed: a number from 0 to 1; put it back as it was, or delete both to judge again'),
    of_verdicts('{"answer": "a", "label": "comply", "score": NaN}\n', 'FOLDER/m/direct.jsonl, line 1: score is nan; allowed: a number from 0 to 1; put it back as it was, or delete both to judge again'),
    of_verdicts('{"answer": "a", "label": "comply", "score": "1"}\n', "FOLDER/m/direct.jsonl, line 1: score is '1'; allowed: a number from 0 to 1; put it back as it was, or delete both to judge again"),
    of_verdicts('{"answer": "a", "label": ["comply"], "score": 1}\n', "FOLDER/m/direct.jsonl, line 1: label is ['comply']; allowed: comply | refuse | lost; put it back as it was, or delete both to judge again"),
    of_verdicts('{"answer": "a", "label": "comply"}\n', "FOLDER/m/direct.jsonl, line 1: no key 'score'; found: answer, label"),
    of_verdicts("[]\n", 'FOLDER/m/direct.jsonl, line 1: found list; allowed: an object per line'),
    of_verdicts('{"answer": "a", "label": "comply", "score": 1.0}\n', 'FOLDER/judge.json is gone: nobody knows whose verdicts these are; put it back, or delete that folder to judge again', marker=False),
]
