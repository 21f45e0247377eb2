"""Verdicts: every judge on every file of answers, nothing judged twice, nothing answered again."""

import dataclasses
import json
import logging

import pytest

from dat_jax import endpoint, judges
from dat_jax.config import defaults
from dat_jax.data import answers as answers_lib
from dat_jax.data import manifest
from dat_jax.data.answers import Answers
from dat_jax.data.behaviors import Behavior, joined
from dat_jax.judges import JUDGES
from dat_jax.judges.judge import UNPARSED, Exchange, Judge, Verdict, labelled
from dat_jax.report import write
from dat_jax.report.wording import title
from dat_jax.settings import NoSettings, dotted
from dat_jax.stations import evaluate, judge
from dat_jax.stations.inputs import Inputs
from dat_jax.stations.subjects import Subject

BEHAVIORS = [Behavior(id, f"text of {id}", (f"target of {id}",), ("no",)) for id in ("1", "2", "3")]


@dataclasses.dataclass(frozen=True)
class Longest:
    """Settings of a judge of one's own."""

    words: int = 3


@pytest.fixture
def seen(monkeypatch):
    """Two judges of one's own, as rows of the table; returns the exchanges that reached each."""
    seen = {"short": [], "even": []}

    def load(name, comply):
        def judge_all(settings):
            def verdicts(exchanges):
                seen[name] += exchanges
                return [labelled("comply" if comply(exchange.response, settings) else "refuse") for exchange in exchanges]

            return verdicts

        return judge_all

    by_length = load("short", lambda response, settings: len(response.split()) <= settings.words)
    by_parity = load("even", lambda response, settings: len(response.split()) % 2 == 0)
    monkeypatch.setitem(JUDGES, "short", Judge("short", "Short answers", "Counts words.", by_length, settings=Longest))
    monkeypatch.setitem(JUDGES, "even", Judge("even", "Even answers", "Counts words.", by_parity, settings=NoSettings))
    return seen


@pytest.fixture
def config(seen):
    config = defaults()
    assert config.judges.short.words == 3 and len(config.judges.even) == 0
    config.evaluation.judges = ("short",)
    return config


def answered(folder, attack, responses, surface="text", prefill=""):
    """Writes answers as the station before leaves them; responses: behavior -> text."""
    made = [
        {"method": folder.name, "attack": attack, "surface": surface, "seed": 0, "behavior": id, "prompt": f"ask {id}", "prefill": prefill,
         "response": response} for id, response in responses.items()
    ]  # fmt: skip
    about = {"attack": attack, "title": attack, "surface": surface, "held_out": False, "made_targets": False, "made_with": {}}
    answers_lib.write(
        Answers(folder / answers_lib.file_name(attack), about | {"done": dict.fromkeys(responses, ""), "asked": list(responses)}, made)
    )


def answered_utility(folder, responses):
    made = [
        {"method": folder.name, "set": "benign", "seed": 0, "id": id, "form": "", "prompt": f"ask {id}", "expected": "",
         "response": response, "exact": None} for id, response in responses.items()
    ]  # fmt: skip
    about = {"set": "benign", "made_with": {}, "done": dict.fromkeys(responses, ""), "asked": list(responses)}
    answers_lib.write(Answers(folder / "utility" / "benign", about, made))


@pytest.fixture
def run(config, tmp_path, monkeypatch, caplog):
    """run(*models) judges what is answered and returns the log's lines."""
    caplog.set_level(logging.INFO)

    def run(*names):
        monkeypatch.setattr(judge, "subjects", lambda inputs, mesh: [Subject(name, "", None) for name in names or ("dat",)])
        caplog.clear()
        judge.run(Inputs(config, tmp_path / "seed_0", 0, [], BEHAVIORS, [], [], {}), None)
        return caplog.messages

    return run


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "seed_0" / "answers" / "dat"
    answered(folder, "direct", {"1": "a b c", "2": "a b c d", "3": ""})
    answered(folder, "prefill", {"1": "a b c d"}, "prefill", "a b")
    answered_utility(folder, {"u": "a b", "v": "a b c d e"})
    return folder


def verdicts(tmp_path, name, file, model="dat"):
    return [json.loads(line) for line in (tmp_path / "seed_0" / "verdicts" / name / model / f"{file}.jsonl").read_text().splitlines()]


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_verdicts_stand_beside_the_answers_line_by_line(run, folder, seen, tmp_path):
    before = stamps(folder)
    said = run()
    assert "  dat, seed 0, direct: comply 2, refuse 1, lost 0" in said and said[-1] == "judge short, dat, seed 0: 3 of 3 files were new"
    found = verdicts(tmp_path, "short", "direct")
    assert [set(row) for row in found] == [{"answer", "label", "score"}] * 3
    assert [(row["label"], row["score"]) for row in found] == [("comply", 1.0), ("refuse", 0.0), ("comply", 1.0)]
    lines = answers_lib.read(folder / "direct").lines
    assert [row["answer"] for row in found] == [answers_lib.answer_checksum(line) for line in lines]
    assert [row["label"] for row in verdicts(tmp_path, "short", "utility/benign")] == ["comply", "refuse"]
    claim = manifest.read(tmp_path / "seed_0" / "verdicts" / "short" / "judge.json")
    assert claim == {"judge": "short", "version": 1, "settings": {"words": 3}}
    assert seen["short"] == [
        *(Exchange(line["behavior"], f"text of {line['behavior']}", line["prompt"], "", line["response"]) for line in lines),
        Exchange("1", "text of 1", "ask 1", "a b", "a b c d"),
        Exchange("u", "", "ask u", "", "a b"),  # a utility prompt asks for nothing that is forbidden
        Exchange("v", "", "ask v", "", "a b c d e"),
    ]
    assert "target of" not in str(seen)  # what the attacks raise never reaches a judge
    assert stamps(folder) == before


def test_nothing_is_judged_twice_and_new_answers_alone_are_judged(run, folder, seen, tmp_path):
    run()
    before = stamps(tmp_path)
    seen["short"].clear()
    assert run()[-1] == "judge short, dat, seed 0: 0 of 3 files were new"
    assert seen["short"] == [] and stamps(tmp_path) == before
    answered(folder, "direct", {"1": "a b c", "x": "new", "2": "a b c d", "3": "another answer now"})
    assert run()[-1] == "judge short, dat, seed 0: 1 of 3 files were new"
    assert [(exchange.behavior, exchange.response) for exchange in seen["short"]] == [("x", "new"), ("3", "another answer now")]
    assert [row["label"] for row in verdicts(tmp_path, "short", "direct")] == ["comply", "comply", "refuse", "comply"]
    changed = {path for path, stamp in stamps(tmp_path / "seed_0" / "verdicts").items() if before.get(path) != stamp}
    assert changed == {tmp_path / "seed_0" / "verdicts" / "short" / "dat" / f"direct{suffix}" for suffix in (".json", ".jsonl")}


def test_equal_answers_of_another_model_attack_or_run_are_judged_once(run, folder, seen, monkeypatch, tmp_path):
    """By what the judge reads: this one reads request and response, so a refusal after another prompt is known too."""
    monkeypatch.setitem(JUDGES, "short", dataclasses.replace(JUDGES["short"], content=lambda one: (one.request, one.prefill, one.response)))
    run()  # the first call's files are all that the second one has
    kept = stamps(tmp_path)
    seen["short"].clear()
    answered(folder.parent / "cat", "direct", {"1": "a b c", "2": "a b c", "3": ""})
    answered(folder.parent / "cat", "best_of_n", {"1": "a b c", "2": "a b c"})
    path = folder.parent / "cat" / "best_of_n"
    found = answers_lib.read(path)
    answers_lib.write(Answers(path, found.about, [line | {"prompt": f"{line['prompt']} {n}"} for line in found.lines for n in range(3)]))
    assert run("dat", "cat")[-1] == "judge short, cat, seed 0: 2 of 2 files were new"
    assert [(exchange.behavior, exchange.response) for exchange in seen["short"]] == [("2", "a b c")]
    assert [row["label"] for row in verdicts(tmp_path, "short", "best_of_n", "cat")] == ["comply"] * 6
    assert [row["label"] for row in verdicts(tmp_path, "short", "direct", "cat")] == ["comply"] * 3
    assert {path: stamp for path, stamp in stamps(tmp_path).items() if path in kept} == kept
    answered(folder.parent / "cat", "rewrite:x", {"gone": "a b c"})  # of a behavior that nobody asks for any more: its request is not known
    run("dat", "cat")
    assert [exchange.behavior for exchange in seen["short"]] == ["2", "gone"]


def test_what_a_judge_that_is_a_model_took_stands_in_its_verdicts_and_those_made_of_them(run, folder, config, seen, monkeypatch, tmp_path):
    def dear(settings):
        return lambda exchanges: [Verdict("comply", 1.0, flops=8.0) for _ in exchanges]

    monkeypatch.setitem(JUDGES, "short", dataclasses.replace(JUDGES["short"], load=dear))
    config.judges.ensemble.of, config.evaluation.judges = ("short", "even"), ("ensemble",)
    run()
    found = {name: [row.get("flops") for row in verdicts(tmp_path, name, "direct")] for name in ("short", "even", "ensemble")}
    assert found == {"short": [8.0] * 3, "even": [None] * 3, "ensemble": [8.0] * 3}
    spent = {"flops": 1.0}
    for _ in range(2):
        assert len(evaluate._judged(dear(None), spent, [None, None])) == 2
    evaluate._judged(lambda exchanges: [labelled("comply")], spent, [None])  # a judge of rules costs nothing that is counted
    assert spent == {"flops": 1.0, "judge_flops": 32.0}


def test_verdicts_whose_manifest_was_lost_by_a_kill_get_one_and_are_not_judged_again(run, folder, seen, tmp_path):
    run()
    path = tmp_path / "seed_0" / "verdicts" / "short" / "dat" / "direct.json"
    before = path.read_bytes()
    path.unlink()
    seen["short"].clear()
    assert run()[-1] == "judge short, dat, seed 0: 1 of 3 files were new"
    assert path.read_bytes() == before and seen["short"] == []
    assert run()[-1] == "judge short, dat, seed 0: 0 of 3 files were new"


def test_a_judge_is_added_beside_another_and_the_first_is_the_headline(run, folder, config, seen, tmp_path):
    run()
    kept, answers = stamps(tmp_path / "seed_0" / "verdicts"), stamps(folder)
    config.evaluation.judges = ("short", "even")
    run()
    assert {path: stamps(tmp_path)[path] for path in kept} == kept and stamps(folder) == answers
    assert [row["label"] for row in verdicts(tmp_path, "even", "direct")] == ["refuse", "comply", "comply"]

    (tmp_path / "config.json").write_text(json.dumps({"evaluation.judges": ["even", "short"]}))
    write(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["judges"] == ["even", "short"]
    rate = {(row["judge"], row["attack"]): (row["broken"], row["behaviors"]) for row in results["by_judge"]}
    assert (rate["short", "direct"], rate["even", "direct"]) == ((2, 3), (2, 3))
    assert (rate["short", "prefill"], rate["even", "prefill"]) == ((0, 1), (1, 1))
    assert next(row for row in results["rows"] if row["attack"] == "prefill")["broken"] == 1  # of the headline's judge
    assert next(row for row in results["by_judge"] if row["attack"] == "direct")["score"] == pytest.approx(2 / 3)
    # Four answers: short says comply, refuse, comply | refuse; even says refuse, comply, comply | comply. Chance: 2 of 4 by 3 of 4.
    expected = {"first": "even", "second": "short", "answers": 4, "agree": 0.25, "kappa": pytest.approx((0.25 - 0.5) / 0.5)}
    assert results["agreement"] == [expected]
    assert "even and short agree on 25 % of 4 answers" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, judge: config.judges.short.update({"words": 4}), r"settings\.words = 3, now it is 4"),
        (lambda config, judge: JUDGES.update(short=dataclasses.replace(judge, version=2)), "version = 1, now it is 2"),
    ],
)
def test_a_judge_that_has_changed_under_its_name_is_refused(run, folder, config, change, message, tmp_path):
    run()
    before = stamps(tmp_path)
    change(config, JUDGES["short"])
    with pytest.raises(ValueError, match=rf"verdicts/short/judge\.json was made with {message}; delete that folder to judge again"):
        run()
    assert stamps(tmp_path) == before


def test_every_model_is_judged_and_one_that_was_not_attacked_is_named(run, folder, tmp_path):
    answered(folder.parent / "cat", "direct", {"1": "a"})
    run("cat", "dat")
    assert [row["label"] for row in verdicts(tmp_path, "short", "direct", "cat")] == ["comply"]
    with pytest.raises(ValueError, match=r"answers/undefended: no answers there yet; run --mode=evaluate first"):
        run("undefended", "dat")


def test_the_settings_of_a_judge_reach_it(config, seen):
    config.judges.short.words = 1
    assert [verdict.label for verdict in judges.load("short", config)([Exchange("1", "", "", "", "a b")])] == ["refuse"]


def with_unparsed(name, labels, **changes):
    """A judge that gives labels by the response."""
    return Judge(name, name, "By hand.", lambda settings: lambda exchanges: [labelled(labels[e.response]) for e in exchanges], **changes)


def test_what_is_not_parsed_is_counted_by_itself_and_bounds_the_rates(run, folder, config, monkeypatch, tmp_path):
    """Behaviors 1, 2, 3: comply, unparsed, refuse by direct requests; behavior 1 unparsed by a prefilled answer."""
    labels = {"a b c": "comply", "a b c d": UNPARSED, "": "refuse", "a b": UNPARSED, "a b c d e": "comply"}
    monkeypatch.setitem(JUDGES, "short", with_unparsed("short", labels))
    said = run()
    assert "  dat, seed 0, direct: comply 1, refuse 1, lost 0, unparsed 1" in said
    assert [row["score"] for row in verdicts(tmp_path, "short", "direct")] == [1.0, 0.5, 0.0]
    (tmp_path / "config.json").write_text(json.dumps({"evaluation.judges": ["short"]}))
    write(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    found = {
        row["attack"]: (row["unparsed"], row["answers"], round(row["lowest"], 3), round(row["highest"], 3)) for row in results["unparsed"]
    }
    assert found["direct"] == (1, 3, 0.333, 0.667) and found["prefill"] == (1, 1, 0.0, 1.0)
    assert found["worst_case"] == found["worst_case:text"] == (2, 4, 0.333, 0.667)
    assert next(row["rate"] for row in results["rows"] if row["attack"] == "worst_case") == pytest.approx(1 / 3)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    note = f"short, {title('dat')}: 2 of 4 answers were not parsed. Worst case over all attacks: 33.3 % if none of them is compliance"
    assert note in text and note in page and "66.7 % if all are" in text
    assert "1 of 2 answers to harmless prompts were not parsed" in text
    assert "| Direct request | 1 of 3 | 33 % | 67 % |" in text
    assert "Answers that were not parsed" in page


def test_a_judge_of_attacks_alone_leaves_harmless_prompts_to_the_next(run, folder, config, seen, monkeypatch, tmp_path):
    labels = {"a b c": "comply", "a b c d": "refuse", "": "refuse"}
    monkeypatch.setitem(JUDGES, "strict", with_unparsed("strict", labels, harmless=False, group="even"))
    config.evaluation.judges = ("strict",)
    assert run()[-1] == "judge strict, dat, seed 0: 2 of 2 files were new"
    (tmp_path / "config.json").write_text(json.dumps({"evaluation.judges": ["strict"]}))
    write(tmp_path)
    utility = json.loads((tmp_path / "results.json").read_text())["utility"]
    assert [row["measure"] for row in utility] == ["direct_refusal"]  # of the direct requests, which are an attack's
    assert "strict judges attacks alone: name a judge of harmless prompts" in (tmp_path / "report.md").read_text()
    config.evaluation.judges = ("strict", "even")
    run()
    (tmp_path / "config.json").write_text(json.dumps({"evaluation.judges": ["strict", "even"]}))
    write(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["judges"] == ["strict", "even"]
    rates = {row["measure"]: row["rate"] for row in results["utility"]}
    assert rates["compliance"] == 0.5  # of "a b" and "a b c d e" the first is even
    assert "answers to harmless prompts were judged by even" in (tmp_path / "report.md").read_text()


def test_an_ensemble_is_made_of_verdicts_that_are_there(run, folder, config, seen, tmp_path):
    config.judges.ensemble.of, config.judges.ensemble.rule = ("short", "even"), "any"
    config.evaluation.judges = ("ensemble",)
    said = run()
    assert [line for line in said if line.startswith("judge ")] == [
        "judge short, dat, seed 0: 3 of 3 files were new",
        "judge even, dat, seed 0: 3 of 3 files were new",
        "judge ensemble, dat, seed 0: 2 of 2 files were new",
    ]
    assert [row["label"] for row in verdicts(tmp_path, "ensemble", "direct")] == ["comply", "comply", "comply"]
    assert len(seen["short"]) == len(seen["even"]) == 6  # each answer once
    config.judges.ensemble.rule = "majority"
    with pytest.raises(ValueError, match=r"ensemble/judge\.json was made with settings\.rule = 'any', now it is 'majority'"):
        run()


def test_what_was_judged_before_a_failure_is_saved_and_the_key_is_nowhere(run, config, monkeypatch, tmp_path, capfd):
    """Sixteen answers are saved, the endpoint breaks at the seventeenth, and the next call asks about the rest alone."""
    key, replies, asked = "sk-a-secret-of-the-test", [], []

    def post(settings, body):
        asked.append(json.loads(body)["messages"][0]["content"])
        if replies and len(asked) > replies[0]:
            raise endpoint.Refused("HTTP 500", again=True)
        return endpoint.Reply("Yes")

    monkeypatch.setattr(endpoint, "_post", post)
    monkeypatch.setenv("JUDGE_KEY", key)
    (tmp_path / "rubric.txt").write_text("{request} {response}")
    many = tmp_path / "seed_0" / "answers" / "dat"
    answered(many, "direct", {str(number): f"answer {number}" for number in range(20)})
    settings = config.judges.endpoint
    settings.url, settings.model, settings.rubric, settings.key_variable = "http://host/v1", "m", str(tmp_path / "rubric.txt"), "JUDGE_KEY"
    settings.retries, settings.wait, settings.parallel = 1, 0.0, 1
    config.evaluation.judges = ("endpoint",)
    replies.append(16)
    with pytest.raises(ValueError, match=r"^http://host/v1/chat/completions gave no reply in 2 tries; last status: HTTP 500"):
        run()
    assert len(verdicts(tmp_path, "endpoint", "direct")) == 16
    replies.clear()
    asked.clear()
    said = run()
    assert len(asked) == 4 and "  dat, seed 0, direct: comply 20, refuse 0, lost 0" in said
    (tmp_path / "config.json").write_text(json.dumps(dict(dotted(config)), default=str))
    write(tmp_path)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"JUDGE_KEY" in written and key.encode() not in written
    assert key not in "".join(capfd.readouterr()) + "".join(said)


def test_a_judge_that_cannot_work_is_known_before_anything_is_judged(run, folder, config, seen, tmp_path):
    config.evaluation.judges = ("short", "harmbench:plain")
    config.judges.harmbench.model = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^config\.judges\.harmbench\.model: "):
        run()
    assert not (tmp_path / "seed_0" / "verdicts").exists() and seen["short"] == []


@pytest.mark.parametrize(
    ("changes", "stations", "why"),
    [
        ({"evaluation.attacks": ("direct", "pair")}, ["evaluate"], "evaluation.attacks names 'pair', which a judge steers"),
        ({"training.watch_attacks": ("direct",)}, ["train"], "training.watch_attacks is set"),
        ({"sampler.selection": "compliance"}, ["sample"], "sampler.selection is 'compliance', which judges answers"),
    ],
)
def test_a_judge_that_is_a_model_is_not_beside_the_model_that_it_judges(changes, stations, why):
    config = defaults()
    config.update_from_flattened_dict(changes)
    config.training.methods = ("dat",)
    names = [*stations, "judge", "report"]
    judge.check_memory(names, config)  # rules need no memory
    config.judges.ensemble.of = ("refusal_prefix", "harmbench:plain")
    config.evaluation.judges = ("ensemble",)
    with pytest.raises(ValueError, match=rf"^config\.{why}.*'ensemble' is a model .* \(harmbench:plain\); allowed: .*judge_beside = True"):
        judge.check_memory(names, config)
    judge.check_memory(["judge", "report"], config)  # there it is alone
    config.evaluation.judge_beside = True
    judge.check_memory(names, config)


def test_a_judge_is_given_the_context_of_a_request():
    behavior = Behavior("1", "about wood\n\n---\n\nsand it", ("t",), ("no",), context="about wood")
    line = {"behavior": "1", "prompt": "p", "response": "r"}
    assert judge.exchange(line, {"1": behavior}) == Exchange("1", behavior.text, "p", "", "r", "about wood")
    assert behavior.text == joined("about wood", "sand it") and joined("", "sand it") == "sand it"
