"""The command line refuses what it cannot do in one line with exit code 2, and leaves nothing behind."""

import gzip
import os
import subprocess
import sys

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.train.config import RATES, Config, choose_device
from tests.train.conftest import ROOT, idx, invoke, write_set


def refused(result):
    """The one line on stderr of a command that must have failed."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


FLAGS = [
    (["--optimizer", "adamm"], "adamm"),
    (["--model", "resnet"], "resnet"),
    (["--schedule", "zigzag"], "zigzag"),
    (["--dtype", "float8"], "float8"),
    (["--lr", "-0.1"], "--lr -0.1: expected a positive number"),
    (["--lr", "0"], "--lr 0.0: expected a positive number"),
    (["--lr", "nan"], "--lr nan: expected a positive number"),
    (["--lr", "fast"], "'fast' is not a valid float"),
    (["--batch-size", "0"], "--batch-size 0: expected at least 1"),
    (["--epochs", "0"], "--epochs 0: expected at least 1"),
    (["--epochs", "1.5"], "--epochs"),
    (["--seed", "-1"], "--seed -1"),
    (["--early-stop", "0"], "--early-stop 0: expected at least 1"),
    (["--log-every", "0"], "--log-every 0: expected at least 1"),
    (["--momentum", "1"], "--momentum 1.0"),
    (["--momentum", "0.9", "--optimizer", "adam"], "--momentum 0.9: expected with --optimizer sgd"),
    (["--weight-decay", "-1"], "--weight-decay -1.0"),
    (["--hidden", "10,x"], "'10,x' is not a list of widths"),
    (["--hidden", "0"], "--hidden 0: expected positive widths"),
    (["--hidden", "32", "--model", "lenet"], "--hidden 32: expected with --model mlp"),
    (["--device", "tpu"], "--device tpu: expected auto, cpu, cuda or cuda:N"),
    (["--device", "cuda:x"], "--device cuda:x: expected"),
    (["--frobnicate"], "No such option"),
    (["extra"], "unexpected extra argument"),
    (["--data", "no/such/folder"], "no such folder"),
]


@pytest.mark.parametrize("flags, message", FLAGS, ids=[" ".join(f) for f, _ in FLAGS])
def test_an_impossible_flag(tmp_path, flags, message):
    assert message in refused(invoke("train", "--out", tmp_path / "run", *flags))
    assert not os.listdir(tmp_path)


def test_a_gpu_that_is_not_there(tmp_path):
    if gg.is_available("cuda"):
        pytest.skip("this machine has a GPU")
    message = refused(invoke("train", "--device", "cuda", "--out", tmp_path / "run"))
    assert "--device cuda: " in message
    assert "NVIDIA driver" in message or "CuPy" in message
    assert not os.listdir(tmp_path)
    device, reason = choose_device("auto")
    assert device == "cpu"
    assert "NVIDIA driver" in reason or "CuPy" in reason


def damage(name, change):
    """A change of one file of the small set."""

    def apply(folder):
        path = folder / f"{name}-ubyte"
        path.write_bytes(change(path.read_bytes()))

    return apply


DAMAGES = {
    "missing file": (lambda d: (d / "t10k-labels-idx1-ubyte").unlink(), "no file t10k-labels"),
    "empty file": (damage("train-images-idx3", lambda b: b""), "not an IDX file"),
    "wrong magic": (damage("train-images-idx3", lambda b: b"PNG\0" + b[4:]), "not an IDX file"),
    "labels for images": (damage("train-images-idx3", lambda b: idx(np.zeros(40))), "expected uint8 with 3 axes"),
    "truncated header": (damage("train-images-idx3", lambda b: b[:9]), "expected a header of 16"),
    "truncated data": (damage("train-images-idx3", lambda b: b[:-1]), "truncated"),
    "trailing bytes": (damage("train-labels-idx1", lambda b: b + b"\0"), "trailing bytes"),
    "too few labels": (damage("train-labels-idx1", lambda b: idx(np.zeros(39))), "39 labels, expected 40"),
    "truncated gzip": (damage("train-images-idx3", lambda b: gzip.compress(b)[:-40]), "damaged gzip file"),
    "corrupt gzip": (damage("train-labels-idx1", lambda b: gzip.compress(b)[:12] + b"\xff" * 30), "damaged gzip file"),
    "other test size": (damage("t10k-images-idx3", lambda b: idx(np.zeros((20, 9, 9)))), "expected [8, 8]"),
    "no images": (
        lambda d: [damage(n, lambda b, s=s: idx(np.zeros(s)))(d) for n, s in
                   (("t10k-images-idx3", (0, 8, 8)), ("t10k-labels-idx1", (0,)))],
        "0 test images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", DAMAGES)
def test_damaged_data(tmp_path, fault):
    folder = write_set(tmp_path / "set", pack=False)
    break_it, message = DAMAGES[fault]
    break_it(folder)
    assert message in refused(invoke("train", "--data", folder, "--out", tmp_path / "run"))
    assert os.listdir(tmp_path) == ["set"]


def test_images_that_are_too_small(tmp_path):
    folder = write_set(tmp_path / "set", size=(4, 3))
    assert "at least 4x4" in refused(invoke("train", "--data", folder, "--model", "lenet", "--out", tmp_path / "run"))
    assert os.listdir(tmp_path) == ["set"]


def test_a_folder_that_is_in_use(tmp_path, small_set):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    message = refused(invoke("train", "--data", small_set, "--out", out))
    assert "not empty" in message
    assert os.listdir(out) == ["thesis.tex"]
    message = refused(invoke("train", "--data", small_set, "--out", out / "thesis.tex"))
    assert "thesis.tex" in message


def test_bad_runs_for_eval_and_resume(tmp_path):
    for args in (["eval", tmp_path / "none"], ["train", "--resume", tmp_path / "none"]):
        assert "none: no such run folder" in refused(invoke(*args))
    (tmp_path / "run").mkdir()
    for args in (["eval", tmp_path / "run"], ["train", "--resume", tmp_path / "run"]):
        assert "no such file" in refused(invoke(*args))
    (tmp_path / "run" / "last.safetensors").write_bytes(b"garbage" * 9)
    for args in (["eval", tmp_path / "run"], ["train", "--resume", tmp_path / "run"]):
        assert "not a readable checkpoint" in refused(invoke(*args))
    assert "Missing argument" in refused(invoke("eval"))


def test_flags_that_a_resumed_run_cannot_take(tmp_path):
    for flag in (["--lr", "1"], ["--batch-size", "64"], ["--out", tmp_path / "x"], ["--weight-decay", "0"]):
        message = refused(invoke("train", "--resume", tmp_path, *flag))
        assert message == f"error: {flag[0]} cannot change when a run is resumed"


def test_help_and_version():
    for args in ([], ["--help"], ["-h"]):
        result = invoke(*args)
        assert result.exit_code == 0
        assert "train" in result.output
        assert "eval" in result.output
    assert invoke("--version").output.strip() == f"gpugrad, version {gg.__version__}"
    text = invoke("train", "--help").output
    for flag in (
        "--data",
        "--model",
        "--optimizer",
        "--lr",
        "--batch-size",
        "--epochs",
        "--device",
        "--seed",
        "--dtype",
    ):
        assert flag in text


def run_python(code, **environment):
    """Run a program in another process."""
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)


HIDE = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: None if name.partition(".")[0] == "{library}" else found(name, *args)
from gpugrad.cli import main
main(["train", "--epochs", "1", "--out", r"{out}"])
"""


@pytest.mark.parametrize("library", ["click", "rich", "safetensors", "matplotlib", "sklearn"])
def test_a_missing_library_names_the_install_command(tmp_path, library):
    result = run_python(HIDE.format(library=library, out=tmp_path / "run"))
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert "pip install 'gpugrad[train]'" in line
    assert not os.listdir(tmp_path)


def test_the_package_itself_needs_none_of_them():
    heavy = "{'click', 'rich', 'safetensors', 'matplotlib', 'sklearn', 'cupy', 'scipy'}"
    for module in ("gpugrad", "gpugrad.train"):
        result = run_python(f"import sys, {module}; print({heavy} & set(sys.modules))")
        assert result.stdout.strip() == "set()", result.stderr


def test_debugging_shows_the_traceback(tmp_path):
    code = f"from gpugrad.cli import main; main(['eval', {str(tmp_path / 'none')!r}])"
    assert "Traceback" not in run_python(code).stderr
    assert "Traceback" in run_python(code, GPUGRAD_DEBUG="1").stderr


@pytest.mark.parametrize("optimizer", RATES)
def test_the_configuration_survives_json(optimizer):
    config = Config(optimizer=optimizer, hidden=(3, 4)).complete()
    assert config.lr == RATES[optimizer]
    assert Config.from_json(config.to_json()) == config
