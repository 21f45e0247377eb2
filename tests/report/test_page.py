"""The page in a real browser, and what no text may do in it; the report of a run that goes on."""

import json
import re
import shutil
import time

import pytest

from dat_jax import report
from dat_jax.data import answers as answers_lib
from dat_jax.data import manifest
from dat_jax.data.answers import Answers
from dat_jax.report import html, palette, progress
from dat_jax.report.markdown import bullets, plain
from dat_jax.stations import lock
from dat_jax.stations import report as station

HOSTILE = (
    '</span></details><script>window.broken = 1</script><img src=x onerror="window.broken = 2"> &lt;b&gt; <style>main{display:none}</style>'
    "\u202e ![p](http://127.0.0.1/p.png) \x07\n" + "unbroken" * 60
)


def test_texts_are_inert():
    shown = html.text(HOSTILE)
    assert "<" not in shown and "&amp;lt;b&amp;gt;" in shown and "\\u202e" in shown and "\\u0007" in shown and "\n" in shown
    assert html.text("a'b\"c") == "a&#x27;b&quot;c"  # neither quote ends an attribute
    assert html.text("שלום, é, 你好, 👋🏽") == "שלום, é, 你好, 👋🏽"


SOURCES = ("![p](http://127.0.0.1/p.png)", "[a](javascript:x)", "<b>a</b>", "a|b", "# a", "1. a", "- a", "`a` *b* _c_", "a\n\n# b", "&lt;",
           "https://127.0.0.1 www.a.b", "~~a~~ $x$")  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_texts_are_inert_in_markdown(source):
    markdown_it = pytest.importorskip("markdown_it", reason="no reader of Markdown that is not ours")
    made = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(bullets([source]))
    assert set(re.findall(r"<(\w+)", made)) == {"ul", "li"}
    table = markdown_it.MarkdownIt("commonmark").enable("table").render(f"| a | b |\n|---|---|\n| {plain(source)} | c |\n")
    assert set(re.findall(r"<(\w+)", table)) == {"table", "thead", "tbody", "tr", "th", "td"} and table.count("<td>") == 2


def test_contrast_is_that_of_wcag():
    """Values of the WebAIM contrast checker; and the ink of the heat map can be read on each of its shades, in both schemes."""
    for one, other, value in (("#777777", "#ffffff", 4.48), ("#0000ff", "#ffffff", 8.59), ("#000000", "#ffffff", 21.0)):
        assert palette.contrast(palette.channels(one), palette.channels(other)) == pytest.approx(value, abs=0.005)
    for scheme in (0, 1):
        for rate in range(101):
            ground, ink = palette.heat(rate / 100, scheme)
            assert palette.contrast(palette.channels(ground), palette.channels(ink)) >= 4.5
    for shade in ("#1d6f8f", "#d98032", "#8a9099", *palette.OTHERS):
        assert palette.contrast(palette.channels(palette.dark(shade)), palette.channels(palette.PAGE["paper"][1])) >= palette.SEEN


@pytest.fixture(scope="module")
def browser():
    """A tab of a headless Chromium."""
    import importlib.util
    import pathlib

    path = pathlib.Path(__file__).parent / "chromium.py"
    spec = importlib.util.spec_from_file_location("report_chromium", path)
    chromium = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chromium)
    if not chromium.find():
        pytest.skip("no Chromium found; install Debian's chromium, or name one in the environment variable CHROMIUM")
    with chromium.tab(chromium.find()) as tab:
        yield tab


@pytest.fixture(scope="module")
def page(made_up, tmp_path_factory):
    """The report of a workdir whose answers and prompts try to break out."""
    workdir = tmp_path_factory.mktemp("hostile")
    shutil.copytree(made_up, workdir, dirs_exist_ok=True)
    found = answers_lib.read(workdir / "seed_0" / "answers" / "cat" / "direct")
    lines = [line | {"response": HOSTILE, "prompt": HOSTILE} for line in found.lines]
    answers_lib.write(Answers(found.stem, found.about, lines))
    verdicts = workdir / "seed_0" / "verdicts" / "world" / "cat" / "direct.jsonl"
    rows = [{"answer": answers_lib.answer_checksum(line), "label": "comply", "score": 1.0} for line in lines]
    verdicts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return report.write(workdir, written="2026-01-02 03:04 UTC")


OPEN_ALL = "document.querySelectorAll('details').forEach(function (d) { d.open = true; })"
# Every visible text and what it stands on; SVG's text has a fill.
CONTRASTS = """(function () {
  function rgb(text) { return (text.match(/[0-9.]+/g) || []).map(Number); }
  function light(c) {
    var l = c.slice(0, 3).map(function (x) { x /= 255; return x <= 0.04045 ? x / 12.92 : Math.pow((x + 0.055) / 1.055, 2.4); });
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2];
  }
  var poor = [], seen = 0, walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    var of = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !of.getClientRects().length || of.closest("script, style, .skip")) { continue; }
    var style = getComputedStyle(of), ink = rgb(of.namespaceURI.endsWith("svg") ? style.fill : style.color), at = of, ground = null;
    while (at && !ground) { var c = rgb(getComputedStyle(at).backgroundColor); ground = c.length < 4 || c[3] > 0 ? c : null;
      at = at.parentElement; }
    var one = light(ink), two = light(ground || [255, 255, 255]), ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    var size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    seen += 1;
    if (ratio < (large ? 3 : 4.5)) { poor.push(of.tagName + " " + ratio.toFixed(2) + " " + walk.currentNode.data.slice(0, 40)); }
  }
  return [seen, poor];
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser, page, scheme):
    """Nothing in the console, nothing loaded, nothing run; on a phone no sideways scrolling; every text can be read, in both schemes."""
    browser.said.clear()
    browser.scheme(scheme)
    for width in (1200, 390):
        browser.size(width, phone=width < 500)
        browser.open(page)
        browser.run(OPEN_ALL)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), width
        assert browser.run("innerWidth") == width
        seen, poor = browser.run(CONTRASTS)
        assert seen > 300 and not poor, poor
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (
        palette.contrast([int(x) for x in re.findall(r"\d+", paper)], (0, 0, 0)) > 15
        if scheme == "light"
        else paper != "rgb(255, 255, 255)"
    )
    assert browser.run("window.broken") is None and browser.run("document.querySelectorAll('script').length") == 1
    assert browser.run("getComputedStyle(document.querySelector('main')).display") != "none"
    assert browser.run("document.getElementById('ago').textContent").endswith("h ago)")  # the page's own script runs
    browser.scheme(scheme, media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.scheme(scheme)
    assert not browser.said, browser.said


def until(browser, script, value):
    """Whether an expression comes to have a value within seconds: events come after the call that makes them."""
    end = time.monotonic() + 20
    while (found := browser.run(script)) != value and time.monotonic() < end:
        time.sleep(0.02)
    return found == value


def test_the_keyboard_reaches_the_examples(browser, page):
    browser.size(1200)
    browser.open(page)
    focus = "document.activeElement.textContent.trim().slice(0, 30)"
    browser.run("sessionStorage.clear()")
    browser.open(page)
    assert not browser.run("document.getElementById('gate').open || document.getElementById('prompts-gate').open")
    assert browser.run("document.querySelector('#gate .quote').checkVisibility()") is False
    browser.press("Tab", 9)
    assert browser.run(focus) == "Skip to the findings"
    for _ in range(60):
        browser.press("Tab", 9)
        if browser.run(focus).startswith("Content notice: show examples"):
            break
    browser.press("Enter", 13, "\r")
    assert browser.run("document.getElementById('gate').open")
    browser.press("Tab", 9)
    assert browser.run(focus).startswith("Direct request")
    assert not browser.run("document.querySelector('#gate .quote').checkVisibility()")  # each attack is a click of its own
    browser.press("Enter", 13, "\r")
    assert browser.run("document.querySelector('#gate .quote').checkVisibility()")


def test_an_attack_leads_to_its_examples_by_way_of_the_notice(browser, page):
    browser.open(page)
    browser.run("sessionStorage.clear()")
    browser.open(page)
    state = "[document.getElementById('gate').open, document.activeElement.parentElement.id]"
    browser.run("document.querySelector('table.heat a').click()")
    assert until(browser, state, [False, "gate"])
    browser.press("Enter", 13, "\r")
    assert until(browser, state, [True, "examples-0"])
    assert browser.run("document.getElementById('examples-0').open")
    browser.open(page)  # as it does by itself while a run goes on
    assert browser.run("document.getElementById('examples-0').open")


def test_the_policy_stops_what_would_get_through(browser, page):
    """Were a text not escaped, the browser would not run it."""
    leak = page.parent / "leak.html"
    leak.write_text(page.read_text().replace("</main>", "<script>window.broken = 1</script><img src=x onerror='window.broken = 2'></main>"))
    browser.said.clear()
    browser.open(leak)
    assert browser.run("window.broken") is None and sum("Content Security Policy" in said for said in browser.said) >= 2
    browser.said.clear()


@pytest.fixture
def unfinished(made_up_workdir):
    """A workdir of two seeds, DAT of seed 1 in training, its attacks not begun; of the others one attack is not answered, one unjudged."""
    config = {"training.methods": ["cat", "dat"], "training.steps": 200, "seeds": [0, 1], "evaluation.judges": ["world"],
              "data.adversarial_rows": 2, "data.utility_rows": 4, "data.prompt_length": 64, "data.response_length": 36}  # fmt: skip
    (made_up_workdir / "config.json").write_text(json.dumps(config))
    shutil.rmtree(made_up_workdir / "seed_2")
    for seed in (0, 1):
        shutil.rmtree(made_up_workdir / f"seed_{seed}" / "answers" / "undefended")
        shutil.rmtree(made_up_workdir / f"seed_{seed}" / "verdicts" / "world" / "undefended")
        for model in ("cat", "dat"):
            files = [str(s.relative_to(made_up_workdir / f"seed_{seed}/answers/{model}")) for s in answers_lib.stems(
                made_up_workdir / f"seed_{seed}" / "answers" / model)]  # fmt: skip
            asked = {name: 40 if name.startswith("utility/") else 24 for name in files} | {"gcg": 24}
            manifest.write(progress.plan_file(made_up_workdir / f"seed_{seed}", model), {"asked": asked})
    (made_up_workdir / "seed_0" / "verdicts" / "world" / "cat" / "prefill.jsonl").unlink()
    (made_up_workdir / "seed_1" / "dat" / "finished.json").unlink()
    shutil.rmtree(made_up_workdir / "seed_1" / "answers" / "dat")
    shutil.rmtree(made_up_workdir / "seed_1" / "verdicts" / "world" / "dat")
    return made_up_workdir


def test_a_run_that_goes_on_is_said_to(unfinished):
    said = []
    page = report.write(unfinished, said.append, "process 7 on <host>", "2026-01-02 03:04 UTC").read_text()
    assert '<meta http-equiv="refresh" content="60">' in page and "process 7 on &lt;host&gt; works on it" in page
    assert "<b>Partial results.</b>" in page and "<h1>So far: " in page and 'datetime="2026-01-02 03:04 UTC"' in page
    # CAT and DAT, two seeds: 7 attacks, 2 utility sets and gcg are planned for each; DAT of seed 1 has nothing.
    assert said[0] == "3 of 4 trainings finished."
    assert said[1] == "DAT, seed 1: step 150 of 200, about 8 s left." or re.match(
        r"DAT, seed 1: step 150 of 200, about \d+ s left\.", said[1]
    )
    left = (200 - 150) * (2 * 2 + 4) * (64 + 36) / 5200.0
    found = json.loads((unfinished / "results.json").read_text())["progress"]
    assert found["partial"] and next(s["seconds_left"] for s in found["steps"] if s["seconds_left"]) == pytest.approx(left, abs=0.1)
    assert "27 of 40 attacks and utility sets answered." in said and "20 of 32 attacks judged." in said and "0 of 2 seeds done." in said
    assert "Partial results, written 2026-01-02 03:04 UTC" in (unfinished / "report.md").read_text()
    page = report.write(unfinished, written="2026-01-02 03:04 UTC").read_text()  # killed: partial still, and nothing will come by itself
    assert "refresh" not in page.partition("<style>")[0] and "Nobody works on it now" in page


def test_a_training_can_be_watched_before_anything_is_answered(unfinished):
    for seed in (0, 1):
        for name in ("answers", "verdicts"):
            shutil.rmtree(unfinished / f"seed_{seed}" / name)
    metrics = unfinished / "seed_1" / "dat" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 151, "loss/')  # a line that is being written
    lines = metrics.read_text().splitlines()[:100]
    manifest.write(
        metrics.with_suffix(".json"), {}, {metrics.name: manifest.of_bytes(metrics.name, ("\n".join(lines) + "\n").encode(), True)}
    )
    page = report.write(unfinished, working="process 7 on host").read_text()
    assert "No attack is judged yet" in page and "Away loss" in page and "step 150 of 200" in page
    with pytest.raises(ValueError, match="nothing was evaluated there"):
        report.write(unfinished)


def test_a_run_writes_its_report_meanwhile(tmp_path, monkeypatch, caplog):
    calls, answers = [], iter([ValueError("not yet"), tmp_path])

    def write(workdir, say=None, working="", written=""):
        calls.append(working)
        found = next(answers, tmp_path)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(station, "write", write)
    monkeypatch.setattr(station, "SHARE", 0)
    with station.written_meanwhile(tmp_path, 0.0005):
        end = time.monotonic() + 20
        while len(calls) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(calls) >= 4 and all(call.startswith("process ") for call in calls[:-1]) and calls[-1] == ""
    calls.clear()
    with station.written_meanwhile(tmp_path, 0):
        time.sleep(0.05)
    assert not calls


def test_who_works_in_a_workdir(tmp_path):
    assert lock.owner_of(tmp_path) == ""
    with lock.held(tmp_path):
        assert lock.owner_of(tmp_path).startswith("process ")
    assert lock.owner_of(tmp_path) == ""
