"""The launch scripts against a gcloud on PATH that records its calls and answers, or fails, from a list of cues."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = ["create", "setup", "train", "evaluate", "logs", "delete", "supervise"]

# The first cue whose pattern occurs in the command line is used up and printed; "!" before the answer means exit status 1.
# A command that waits for a token is run as on a worker: with what arrives on stdin, in a home of the worker's own.
FAKE = r"""#!/usr/bin/env bash
until mkdir "$FAKE/lock" 2> /dev/null; do sleep 0.01; done  # one call at a time
echo "$*" >> "$FAKE/calls"
answer=$(awk -F '\t' -v line="$*" '!done && index(line, $1) { print $2; done = 1; next } { print > "/dev/stderr" }' \
  "$FAKE/cues" 2> "$FAKE/rest"); cp "$FAKE/rest" "$FAKE/cues"; rmdir "$FAKE/lock"
if [[ "$answer" == !* ]]; then echo "${answer#!}" >&2; exit 1; fi
if [[ "$*" == *"read -r HF_TOKEN"* ]]; then
  exec env -u HF_TOKEN HOME="$FAKE/home" bash -c "$(sed 's/^.*--command=//; s/ --zone=.*$//' <<< "$*")"
fi
echo "$answer"
"""


@pytest.fixture
def launch(tmp_path):
    """launch(script, *arguments, cues=[(pattern, answer)], **environment) -> (exit status, calls of gcloud, output)."""
    (tmp_path / "gcloud").write_text(FAKE)
    (tmp_path / "gcloud").chmod(0o755)

    def run(script, *arguments, cues=(), **environment):
        (tmp_path / "cues").write_text("".join(f"{pattern}\t{answer}\n" for pattern, answer in cues))
        (tmp_path / "calls").write_text("")
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "FAKE": str(tmp_path), "POLL": "0", "NAME": "run1"}
        done = subprocess.run(
            [LAUNCH / f"{script}.sh", *arguments], env={**variables, **environment}, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, (tmp_path / "calls").read_text().splitlines(), done.stdout + done.stderr

    return run


def verbs(calls):
    """The calls in short: create, state, scp, start, poll, delete."""
    names = {
        "queued-resources create": "create",
        "queued-resources describe": "state",
        "tpu-vm scp": "scp",
        "worker.sh": "start",
        "dat_jax.exit": "poll",
        "queued-resources delete": "delete",
        "uv venv": "install",
    }
    return [next(short for pattern, short in names.items() if pattern in call) for call in calls]


def test_shellcheck_is_clean():
    scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH.parent / ".ci" / "run"]
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_and_calls_nothing(launch, script):
    status, calls, output = launch(script, "--dry-run", "--workdir=gs://bucket/run")
    assert (status, calls) == (0, [])
    assert "'gcloud' 'compute' 'tpus'" in output
    assert len((LAUNCH / f"{script}.sh").read_text().splitlines()) <= 60


def test_create_waits_for_the_slice(launch):
    cues = [("describe", "WAITING_FOR_RESOURCES"), ("describe", "PROVISIONING"), ("describe", "ACTIVE")]
    status, calls, _ = launch("create", "--spot", cues=cues, TYPE="v6e-8")
    assert status == 0
    assert calls[0] == (
        "compute tpus queued-resources create run1 --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e "
        "--valid-until-duration=24h --node-id=run1 --spot --zone=us-west4-a"
    )
    assert verbs(calls) == ["create", "state", "state", "state"]


def test_create_fails_when_the_request_does(launch):
    status, _, output = launch("create", cues=[("describe", "FAILED")])
    assert (status, "run1: the request ended as FAILED" in output) == (1, True)
    status, calls, output = launch("create", cues=[("create", "!quota exceeded")])
    assert (status, len(calls), "quota exceeded" in output) == (1, 1, True)


@pytest.mark.parametrize(
    ("kind", "slices", "hosts"),
    [
        ("v5litepod-8", 1, 1),
        ("v5litepod-16", 1, 4),
        ("v5litepod-16", 2, 8),
        ("v6e-8", 1, 1),
        ("v5p-32", 1, 4),
    ],
)
def test_train_starts_every_worker_with_the_host_count(launch, kind, slices, hosts):
    status, calls, _ = launch("train", "--workdir=gs://b/r", "--config.training.steps=3", TYPE=kind, SLICES=str(slices))
    assert (status, len(calls)) == (0, slices)
    assert all(
        "--worker=all" in call
        and f"launch/worker.sh --config=configs/gemma_tpu.py --workdir=gs://b/r --config.mesh.processes={hosts} --config.training.steps=3 <"
        in call
        for call in calls
    )
    assert ("ssh run1 " in calls[0]) == (slices == 1)


def test_evaluate_and_tokens(launch, tmp_path):
    home = tmp_path / "home"
    worker = home / "dat_jax" / "launch" / "worker.sh"
    worker.parent.mkdir(parents=True)
    worker.write_text('#!/usr/bin/env bash\necho "$HF_TOKEN" >> "$HOME/arrived"\n')
    worker.chmod(0o755)
    status, calls, output = launch("evaluate", "--workdir=gs://b/r", HF_TOKEN="secret", TYPE="v5litepod-16", SLICES="2")
    assert status == 0, output
    whom = sorted(tuple(call.split()[4:6]) for call in calls)
    assert whom == [(f"run1-{slice_}", f"--worker={index}") for slice_ in range(2) for index in range(4)]
    assert all(r"--mode=evaluate\,judge\,report" in call and "secret" not in call for call in calls) and "secret" not in output
    arrived = home / "arrived"
    for _ in range(200):  # the runs go on in the background
        if arrived.exists() and len(arrived.read_text().splitlines()) == 8:
            break
        time.sleep(0.05)
    assert arrived.read_text().splitlines() == ["secret"] * 8
    holding = [path.name for path in tmp_path.rglob("*") if path.is_file() and "secret" in path.read_text()]
    assert holding == ["arrived"]  # written by the test alone
    _, calls, output = launch("train", "--workdir=gs://b/r", "--dry-run", HF_TOKEN="secret")
    assert (calls, "secret" in output, "--worker=3" in output) == ([], False, True)


def test_a_worker_that_does_not_start_is_an_error(launch):
    cues = [("--worker=2", "!no route")]
    status, calls, output = launch("train", "--workdir=gs://b/r", cues=cues, HF_TOKEN="secret")
    assert (status != 0, len(calls), "secret" in output) == (True, 4, False)


@pytest.mark.parametrize(
    ("script", "environment", "message"),
    [
        ("train", {}, "WORKDIR is ''; give --workdir=gs://bucket/run"),
        ("supervise", {"WORKDIR": "/home"}, "WORKDIR is '/home'"),
        ("create", {"TYPE": "v9-8"}, "TYPE is v9-8; allowed: v5litepod-N, v6e-N, v5p-N"),
    ],
)
def test_wrong_settings_end_at_once(launch, script, environment, message):
    status, calls, output = launch(script, **environment)
    assert (status, calls, message in output) == (2, [], True)


ABSENT, ACTIVE = ("describe", "!NOT_FOUND: no such resource"), ("describe", "ACTIVE")
BEGIN, NEW = ["scp", "install", "start"], ["state", "create", "state", "scp", "install", "start"]


def test_supervisor_recreates_a_preempted_slice_and_deletes_at_the_end(launch):
    cues = [
        ABSENT,
        ACTIVE,
        ("dat_jax.exit", "running"),
        ("dat_jax.exit", "!ssh failed"),
        *[("describe", "SUSPENDED")] * 3,
        ACTIVE,
        ("dat_jax.exit", "0"),
        ACTIVE,
    ]
    status, calls, output = launch("supervise", "--spot", "--workdir=gs://b/r", cues=cues)
    assert status == 0, output
    assert verbs(calls) == [*NEW, "poll", "poll", "state", "state", "state", "delete", "create", "state", *BEGIN, "poll", "state", "delete"]
    starts = [call for call in calls if "worker.sh" in call]
    assert starts[0] == starts[1]  # the same command resumes


def test_supervisor_survives_stock_outs_and_network_failures(launch):
    cues = [
        ABSENT,
        ("create", "!no capacity"),
        ABSENT,
        ABSENT,
        ACTIVE,
        ("dat_jax.exit", "!timeout"),
        ("describe", "!network down"),
        ("dat_jax.exit", "0"),
        ACTIVE,
    ]
    status, calls, output = launch("supervise", "--workdir=gs://b/r", cues=cues)
    assert status == 0, output
    assert verbs(calls) == ["state", "create", "state", *NEW, "poll", "state", "poll", "state", "delete"]


def test_supervisor_resumes_on_the_same_slice_after_a_saving_exit(launch):
    cues = [ACTIVE, ("dat_jax.exit", "75"), ACTIVE, ACTIVE, ("dat_jax.exit", "0"), ACTIVE]
    status, calls, _ = launch("supervise", "--workdir=gs://b/r", cues=cues)
    assert status == 0
    assert verbs(calls) == ["state", *BEGIN, "poll", "state", "state", *BEGIN, "poll", "state", "delete"]


@pytest.mark.parametrize(("code", "starts"), [("1", 3), ("2", 1)])
def test_supervisor_gives_up_on_a_run_that_fails_by_itself(launch, code, starts):
    cues = [ACTIVE, ("dat_jax.exit", code), ACTIVE] * 3
    status, calls, output = launch("supervise", "--workdir=gs://b/r", cues=cues)
    assert (status, verbs(calls).count("start"), "delete" in verbs(calls)) == (int(code), starts, False)
    assert "giving up" in output


def test_worker_records_log_status_and_flags(tmp_path):
    (tmp_path / "python").write_text('#!/usr/bin/env bash\necho "$LIBTPU_INIT_ARGS | $*"\nexit 75\n')
    (tmp_path / "python").chmod(0o755)
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DAT_JAX_PYTHON": str(tmp_path / "python")}
    for settings, flags in [({}, 0), ({"LIBTPU_FLAGS": "1", "GENERATION": "v5e"}, 7), ({"LIBTPU_FLAGS": "1", "GENERATION": "v6e"}, 8)]:
        done = subprocess.run([LAUNCH / "worker.sh", "--mode=train"], env={**variables, **settings}, timeout=30, check=False)
        assert done.returncode == 75
        assert (tmp_path / "dat_jax.exit").read_text() == "75\n"
        line = (tmp_path / "dat_jax.log").read_text().splitlines()[-1]
        assert line.count("--xla") == flags and line.endswith("| -u -m dat_jax.main --mode=train")


def test_worker_passes_sigterm_on_and_waits_for_the_save(tmp_path):
    script = ["#!/usr/bin/env bash", "trap 'sleep 0.3; echo saved; exit 75' TERM", "echo ready", "while true; do sleep 0.05; done", ""]
    (tmp_path / "python").write_text("\n".join(script))
    (tmp_path / "python").chmod(0o755)
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DAT_JAX_PYTHON": str(tmp_path / "python")}
    process = subprocess.Popen([LAUNCH / "worker.sh"], env=variables)
    log = tmp_path / "dat_jax.log"
    for _ in range(100):
        if log.exists() and "ready" in log.read_text():
            break
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    process.terminate()
    assert process.wait(timeout=10) == 75
    assert log.read_text() == "ready\nsaved\n"


def _starts_libtpu(flags):
    """Whether the TPU compiler starts with these flags; it ends its process at an unknown one."""
    code = "from jax.experimental import topologies as t; print(len(t.get_topology_desc('v5e:2x2', 'tpu').devices))"
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": " ".join(flags),
    }
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode == 0 and done.stdout.strip() == "4"


@pytest.mark.slow
def test_libtpu_accepts_every_flag():
    pytest.importorskip("libtpu")
    lines = [line.split() for line in (LAUNCH / "libtpu_flags.txt").read_text().splitlines() if not line.startswith("#")]
    assert {generation for generation, _ in lines} <= {"all", "v5e", "v5p", "v6e"}
    assert not _starts_libtpu(["--xla_tpu_no_such_flag=true"])
    assert _starts_libtpu([flag for _, flag in lines])
