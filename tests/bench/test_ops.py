"""The per-op benchmarks run, one for every op of a family that has samples."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpugrad.op import TABLE

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = sorted(p.stem for p in (ROOT / "bench" / "ops").glob("*.py") if p.stem != "__init__")


def run(*args):
    """A pytest of its own, which must not think that it is a worker of this one."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-o", "python_files=*.py", "-q"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *args],
        cwd=ROOT, capture_output=True, text=True, env={**plain, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_families_have_the_stem_of_their_ops():
    assert set(FAMILIES) >= {
        "elementwise", "activation", "reduce", "softmax", "loss", "normalize", "conv", "index", "linalg", "attention",
        "optim", "random",
    }  # fmt: skip
    assert all((ROOT / "gpugrad" / "ops" / f"{name}.py").exists() for name in FAMILIES)


def test_every_op_with_samples_has_a_benchmark():
    pytest.importorskip("pytest_benchmark")
    said = run("bench/ops", "--collect-only").stdout
    for family in FAMILIES:
        samples = importlib.import_module(f"tests.ops.samples.{family}").SAMPLES
        for name in (n for n, found in samples.items() if found and n in TABLE):
            assert f"bench/ops/{family}.py::test_op[{name}]" in said


def test_a_family_is_measured(tmp_path):
    pytest.importorskip("pytest_benchmark")
    done = run("bench/ops/softmax.py", "--benchmark-enable", f"--benchmark-json={tmp_path / 'out.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert {b["name"] for b in found} >= {"test_op[softmax]", "test_op[softmax_bwd]"}
    assert all(b["extra_info"]["gb_s"] > 0 for b in found)
