"""Real processes on tiny workloads: who is measured, who is not and why, and that they take turns."""

import itertools
import json
import time

import pytest

from gpugrad.bench import peers, runner
from gpugrad.bench.peers import Entry
from gpugrad.bench.runner import Options

ODD = ("Doubled", "Crashing", "Raising", "Unwilling", "Tired")


def odd(name, package="numpy", **more):
    return Entry(f"tests.bench.odd_peers:{name}", package, "odd", **more)


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Where Sound writes its times."""
    path = tmp_path / "log"
    monkeypatch.setenv("BENCH_TEST_LOG", str(path))
    return path


@pytest.fixture(scope="module")
def strange():
    """A run with everything that can go wrong, and the lines that it said."""
    patch = pytest.MonkeyPatch()
    said = []
    for name in ODD:
        patch.setitem(peers.PEERS, name, odd(name))
    patch.setitem(peers.PEERS, "absent", odd("Sound", package="no_such_framework"))
    patch.setitem(peers.PEERS, "elsewhere", odd("Sound", devices=("cuda",)))
    options = Options(rounds=3, seconds=0.002, warm=0.002, threads=1, limit=120, say=said.append)
    try:
        yield runner.run(["twolayer:8"], ["gpugrad", "numpy", "absent", "elsewhere", *ODD], options), said
    finally:
        patch.undo()


def row(strange, name):
    return strange[0]["workloads"][0]["rows"][name]


def test_everybody_has_a_row_in_the_order_asked_for(strange):
    assert list(strange[0]["workloads"][0]["rows"]) == ["gpugrad", "numpy", "absent", "elsewhere", *ODD]
    assert json.loads(json.dumps(strange[0])) == strange[0]


def test_a_wrong_optimiser_is_refused_and_not_timed(strange):
    found = row(strange, "Doubled")
    assert found["state"] == "refused"
    assert found["why"].startswith("refused: loss 2 differs by ")
    assert set(found) == {"state", "why"}


def test_a_missing_framework_is_listed_with_its_reason(strange):
    assert row(strange, "absent") == {"state": "missing", "why": "no_such_framework is not installed"}
    assert strange[0]["frameworks"]["no_such_framework"] == {"missing": "no_such_framework is not installed"}
    assert row(strange, "elsewhere") == {"state": "n/a", "why": "not on cpu"}


def test_who_cannot_and_who_fails_says_why(strange):
    assert row(strange, "Unwilling") == {"state": "n/a", "why": "it has no such thing"}
    assert row(strange, "Raising") == {"state": "failed", "why": "RuntimeError: out of luck"}
    assert row(strange, "Crashing") == {"state": "failed", "why": "its process ended with 3: the last words"}


def test_the_sound_ones_are_measured(strange):
    for name in ("gpugrad", "numpy"):
        found = row(strange, name)
        assert found["state"] == "ok"
        assert 0 < found["low_s"] <= found["step_s"] <= found["high_s"]
        assert found["rounds"] == 3 == len(found["all_s"])
        assert found["samples_s"] == pytest.approx(8 / found["step_s"])
        assert 0 < found["first_s"] <= found["learned_s"]
        assert found["host_bytes"] >= 0 <= found["steady_bytes"]
        assert found["roofline"] > 0
    assert strange[0]["workloads"][0]["reference"] == "numpy"
    assert strange[0]["rates"]["copy"] > 1e8


def test_what_was_timed_stands_when_the_rest_fails(strange):
    found = row(strange, "Tired")
    assert found["state"] == "ok"
    assert found["step_s"] > 0
    assert found["unfinished"] == "MemoryError: too much"


def test_the_frameworks_themselves_are_weighed(strange):
    ours, numpy = (strange[0]["frameworks"][n] for n in ("gpugrad", "numpy"))
    assert ours["installed_mb"] > numpy["installed_mb"] > 1
    assert ours["import_s"] > 0 < numpy["import_s"]


def test_every_row_is_said(strange):
    assert strange[1][0] == "twolayer:8: two-layer network of the lecture, 1000-100-10, batch 8"
    assert [line.split()[0] for line in strange[1][1:]] == list(strange[0]["workloads"][0]["rows"])


def test_rounds_take_turns_and_do_not_overlap(log, monkeypatch):
    """Also beside a neighbour; and what a framework prints does not disturb the protocol."""
    monkeypatch.setitem(peers.PEERS, "one", odd("Sound"))
    monkeypatch.setitem(peers.PEERS, "two", odd("Sound"))
    options = Options(rounds=4, seconds=0.01, warm=0.001, threads=1, limit=60)
    found = runner.run(["busy:4"], ["one", "two"], options)["workloads"][0]["rows"]
    spans = sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda s: s[1])
    assert all(before[2] <= after[1] for before, after in itertools.pairwise(spans))
    owners = [pid for pid, *_ in spans[-16:]]  # 2 peers, 4 rounds, quiet and busy
    assert all({a, b} == set(owners) for a, b in zip(owners[::2], owners[1::2]))  # each once a round
    assert owners[0] == owners[3]  # and every round begins with another
    for name in ("one", "two"):
        assert found[name]["beside"] == pytest.approx(found[name]["busy"]["step_s"] / found[name]["step_s"])


def test_who_takes_too_long_is_left_behind(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "slow", odd("Slow"))
    process = runner.Process(peers.PEERS["slow"], runner.workloads.find("xent:4x3"), Options(threads=1), "float32", "")
    assert process.ask("load", 30) == {"state": "ok"}
    found = process.ask("first", 0.3, steps=[1])
    assert found == {"state": "late", "why": "out of time: no answer within 0 s"}
    assert process.process.poll() is not None


def test_threads_and_caches_are_alike():
    made = runner.surroundings(peers.PEERS["gpugrad-compiled"], 3, "here")
    counts = {v for k, v in made.items() if k.endswith("NUM_THREADS")}
    assert counts == {"3"}
    assert made["GPUGRAD_CPU_JIT"] == "1"
    assert runner.surroundings(peers.PEERS["gpugrad"], 3, "here")["GPUGRAD_CPU_JIT"] == "0"
    assert made["TORCHINDUCTOR_CACHE_DIR"].startswith("here")


def test_a_workload_keeps_to_its_share_of_the_time(monkeypatch):
    """A peer that never answers costs its share and no more; the others have been measured or are late as well."""
    monkeypatch.setitem(peers.PEERS, "slow", odd("Slow"))
    options = Options(rounds=2, seconds=0.001, warm=0.001, threads=1)
    start = time.monotonic()
    found = runner.Session(runner.workloads.find("xent:4x3"), ["numpy", "slow"], options, "", share=4).measure()["rows"]
    assert time.monotonic() - start < 30
    assert found["slow"]["state"] == "late"
    assert found["slow"]["why"].startswith("out of time: no answer within ")
    assert found["numpy"]["state"] in ("ok", "late")
