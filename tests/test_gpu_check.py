"""The commands that wait for a GPU run to the end on the double."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpugrad.testing.emulator import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
TOOLS = ["memcheck", "racecheck", "initcheck"]
ROOT = Path(__file__).parent.parent


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment)


def test_gpu_check(tmp_path):
    done = run("bench/gpu_check.py", "--out", str(tmp_path), "--double")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert list(found["parts"]) == ["doctor", "training", "tests", "agreement", "kernels", *TOOLS]
    assert all(p["ok"] for p in found["parts"].values())
    text = (tmp_path / "gpu-check.md").read_text()
    assert "| relu_bwd | float32 |" in text
    assert "lenet: first 3 losses within" in text


def test_every_kernel_of_the_table_is_measured():
    spec = importlib.util.spec_from_file_location("kernels", ROOT / "bench" / "kernels.py")
    bench = importlib.util.module_from_spec(spec)
    sys.modules["kernels"] = bench
    spec.loader.exec_module(bench)
    assert set(bench.CASES) == set(bench.with_kernels())


def test_the_measured_kernels_are_right_on_the_double(tmp_path):
    pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    done = run("bench/kernels.py", "--double", "--out", str(tmp_path / "kernels.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert all(r["ok"] for r in found["results"])
    assert sum(bool(r["kernels"]) for r in found["results"]) > 100  # the others are products by the library


def test_a_wrong_kernel_is_reported(tmp_path):
    code = """
import runpy, sys
sys.argv = ["kernels.py", "--double", "--only", "relu_bwd", "--dtypes", "float32"]
from gpugrad.op import TABLE
TABLE["relu_bwd"].fwd = lambda xp, t, out: xp.where(out < 0, 0, t)
runpy.run_path("bench/kernels.py", run_name="__main__")
"""
    done = run("-c", code)
    assert done.returncode == 0  # normal values are never exactly 0: the two agree
    done = run("-c", code.replace("out < 0", "out < 0.5"))
    assert done.returncode == 1
    assert "wrong: ['relu_bwd float32']" in done.stdout
