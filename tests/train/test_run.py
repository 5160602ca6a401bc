"""Whole runs: accuracy, the run folder, same seed same bits, Ctrl-C and resuming."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest

from gpugrad.train import load_state
from tests.train.conftest import ROOT, invoke, write_set

PICTURES = ("learning-curves", "confusion-matrix", "sample-predictions")


def read_json(path):
    return json.loads(path.read_text())


def log(folder):
    """The records of a run, without what a clock decides."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "samples_per_s")} for r in records]


def digest(folder, name="last"):
    return hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()


def test_the_digits_reach_97_percent(digits_run):
    folder, output = digits_run
    result = read_json(folder / "result.json")
    assert result["test_accuracy"] >= 0.97
    assert result["seconds"] < 30
    assert output.startswith("device  ")
    assert f"test accuracy {result['test_accuracy']:.2%}" in output
    assert f"gpugrad eval {folder}" in output.replace("\n", " ")


def test_the_run_folder(digits_run):
    folder, output = digits_run
    files = {"config.json", "environment.json", "metrics.jsonl", "result.json", "last.safetensors"}
    assert set(os.listdir(folder)) == files | {f"{p}.{kind}" for p in PICTURES for kind in ("png", "svg")}
    for name in files | {f"{p}.png" for p in PICTURES}:
        assert name in output
    config = read_json(folder / "config.json")
    assert config["data"] is None
    assert all(config[k] is not None for k in ("model", "optimizer", "lr", "epochs", "seed", "dtype", "batch_size"))
    card = read_json(folder / "environment.json")
    assert {"python", "numpy", "gpugrad", "commit", "platform", "cpu", "blas", "gpu", "flags", "date"} <= set(card)
    assert card["numpy"] == np.__version__


def test_the_log(digits_run):
    folder, _ = digits_run
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    epochs = [r for r in records if r["event"] == "epoch"]
    intervals = [r for r in records if r["event"] == "interval"]
    assert [r["epoch"] for r in epochs] == list(range(1, len(epochs) + 1))
    keys = {"step", "epoch", "train_loss", "train_accuracy", "lr", "samples_per_s", "seconds"}
    assert all(keys | {"test_loss", "test_accuracy"} <= set(r) for r in epochs)
    assert all(keys | {"grad_norm"} <= set(r) for r in intervals)
    assert [r["step"] for r in records] == sorted(r["step"] for r in records)
    assert epochs[-1]["test_accuracy"] == read_json(folder / "result.json")["test_accuracy"]


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_are_valid(digits_run, name):
    from matplotlib.image import imread

    folder, _ = digits_run
    pixels = imread(folder / f"{name}.png")
    assert min(pixels.shape[:2]) > 300
    assert 0.02 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.9  # neither blank nor black
    assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")


def test_eval_reproduces_the_stored_scores(digits_run):
    folder, _ = digits_run
    result = read_json(folder / "result.json")
    scores = json.loads(invoke("eval", folder, "--json").output)
    assert (scores["accuracy"], scores["loss"]) == (result["test_accuracy"], result["test_loss"])
    assert sum(c["images"] for c in scores["classes"]) == scores["images"]
    assert sum(c["correct"] for c in scores["classes"]) == round(scores["accuracy"] * scores["images"])
    table = invoke("eval", folder / "last.safetensors").output
    assert f"accuracy {result['test_accuracy']:.2%}" in table
    assert len([line for line in table.splitlines() if line.split() and line.split()[0].isdigit()]) == 10


def test_eval_on_other_data(digits_run, tmp_path):
    folder, _ = digits_run
    good = invoke("eval", folder, "--data", write_set(tmp_path / "good"), "--json")
    assert json.loads(good.output)["images"] == 20
    bad = invoke("eval", folder, "--data", write_set(tmp_path / "bad", size=(9, 9)))
    assert bad.exit_code == 2
    assert bad.stderr.count("\n") == 1
    assert "1x9x9" in bad.stderr


@pytest.mark.parametrize("flags", [[], ["--model", "lenet"], ["--dtype", "float64"], ["--optimizer", "sgd"]])
def test_the_same_seed_gives_the_same_bits(tmp_path, flags):
    runs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert (
            invoke("train", "--epochs", 2, "--seed", seed, "--out", tmp_path / name, "--quiet", *flags).exit_code == 0
        )
        runs.append(tmp_path / name)
    a, b, c = runs
    assert digest(a) == digest(b) != digest(c)
    assert log(a) == log(b)
    for p in PICTURES:
        assert (a / f"{p}.png").read_bytes() == (b / f"{p}.png").read_bytes()
    dtype = "float64" if "float64" in flags else "float32"
    assert {v.dtype for v in load_state(a / "last.safetensors")["trainer"]["model"].values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("optimizer", ["adagrad", "adadelta", "rmsprop", "adam", "adamax", "nadam"])
def test_every_optimizer_learns_at_its_own_rate(tmp_path, optimizer):
    result = invoke("train", "--optimizer", optimizer, "--epochs", 10, "--out", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.output
    assert read_json(tmp_path / "run" / "result.json")["test_accuracy"] > 0.93


def command(*args, cwd=None):
    """Start the command line in another process."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "gpugrad", *map(str, args)], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def wait_for_lines(process, folder, count):
    """Until the log of a running process has so many lines."""
    deadline = time.monotonic() + 60
    path = folder / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


LONG = ["--model", "lenet", "--epochs", 5, "--log-every", 3]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert invoke("train", *LONG, "--out", folder, "--quiet").exit_code == 0
    return folder


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("kill, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_run_that_is_interrupted_goes_on_to_the_same_bits(tmp_path, uninterrupted, kill, code):
    folder = tmp_path / "run"
    process = command("train", *LONG, "--out", folder)
    wait_for_lines(process, folder, 12)
    process.send_signal(kill)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors == ""
    state = load_state(folder / "last.safetensors")  # valid at any time
    if kill is signal.SIGINT:
        assert f"go on with: gpugrad train --resume {folder}" in output
        assert f"interrupted at step {state['trainer']['step']} of" in output
        assert not (folder / "result.json").exists()
    scores = invoke("eval", folder)
    assert scores.exit_code == 0, scores.output
    result = invoke("train", "--resume", folder)
    assert result.exit_code == 0, result.output
    assert digest(folder) == digest(uninterrupted)
    assert log(folder) == log(uninterrupted)
    assert [p for p in os.listdir(folder) if p.startswith(".")] == []
    assert len(read_json(folder / "environment.json")["resumed"]) == 1


def test_a_finished_run_can_be_extended(tmp_path):
    folder = tmp_path / "run"
    flags = ["--schedule", "constant", "--quiet"]
    assert invoke("train", "--epochs", 1, "--out", folder, *flags).exit_code == 0
    assert invoke("train", "--resume", folder, "--epochs", 3, "--quiet").exit_code == 0
    assert invoke("train", "--epochs", 3, "--out", tmp_path / "whole", *flags).exit_code == 0
    assert digest(folder) == digest(tmp_path / "whole")
    assert read_json(folder / "config.json") == read_json(tmp_path / "whole" / "config.json")


def test_early_stopping_keeps_the_best(tmp_path):
    folder = tmp_path / "run"
    result = invoke("train", "--epochs", 60, "--early-stop", 2, "--lr", 0.02, "--schedule", "constant", "--out", folder)
    assert result.exit_code == 0, result.output
    epochs = [r for r in log(folder) if r["event"] == "epoch"]
    losses = [r["valid_loss"] for r in epochs]
    assert len(epochs) < 60
    assert len(epochs) - 1 - int(np.argmin(losses)) == 2
    stored = read_json(folder / "result.json")
    assert stored["checkpoint"] == "best.safetensors"
    assert "no better valid_loss for 2 epochs" in stored["stopped"]
    best = load_state(folder / "best.safetensors")["trainer"]
    assert best["epoch"] == int(np.argmin(losses)) + 1
    assert stored["test_accuracy"] == epochs[best["epoch"] - 1]["test_accuracy"]
    assert json.loads(invoke("eval", folder, "--json").output)["accuracy"] == stored["test_accuracy"]


def test_a_run_that_diverges_still_writes_strict_json_and_pictures(tmp_path):
    flags = ["--optimizer", "sgd", "--lr", "1e30", "--epochs", 2, "--out", tmp_path / "run"]
    with np.errstate(all="ignore"):
        result = invoke("train", *flags)
    assert result.exit_code == 0, result.output

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        last = json.loads(line, parse_constant=refuse)
    assert last["train_loss"] is None
    assert all((tmp_path / "run" / f"{p}.png").stat().st_size > 1000 for p in PICTURES)


def test_runs_are_numbered(tmp_path, small_set, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in ("001", "002"):
        result = invoke("train", "--data", "small", "--epochs", 1)
        assert result.exit_code == 0, result.output
        assert f"next    gpugrad eval runs/{number}" in result.output
    assert sorted(os.listdir("runs")) == ["001", "002"]
    monkeypatch.chdir(tmp_path / "runs")  # the data folder is remembered by its full path
    assert invoke("eval", "002").exit_code == 0


def test_quiet_prints_the_result_only(tmp_path, small_set):
    output = invoke("train", "--data", small_set, "--epochs", 1, "--quiet", "--out", tmp_path / "run").output
    assert len(output.splitlines()) == 1
    assert output.startswith("result  test accuracy ")


def test_plain_lines_where_there_is_no_terminal(digits_run):
    _, output = digits_run
    lines = [line for line in output.splitlines() if line.startswith("epoch")]
    assert len(lines) == int(lines[-1].split()[1].split("/")[1])
    assert "\x1b" not in output
    assert "samples/s" in lines[0]


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_live_bar_on_a_terminal(tmp_path, small_set):
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpugrad", "train", "--data", small_set, "--epochs", "2", "--out", tmp_path / "run"],
        stdout=follower, stderr=follower, cwd=ROOT, env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(leader)
    assert process.wait(60) == 0, seen
    text = seen.decode()
    assert "\x1b[" in text
    for word in ("2/2", "loss", "samples/s", "test", "result  test accuracy"):
        assert word in text
    assert "samples/s" not in text[text.index("result  ") :]  # the bar is closed by then


def test_lenet_on_mnist_5k(tmp_path, mnist_5k):
    folder = tmp_path / "run"
    result = invoke("train", "--data", mnist_5k, "--model", "lenet", "--out", folder)
    assert result.exit_code == 0, result.output
    stored = read_json(folder / "result.json")
    assert stored["epochs"] <= 10
    assert stored["test_accuracy"] >= 0.97
    assert json.loads(invoke("eval", folder, "--json").output)["accuracy"] == stored["test_accuracy"]
