"""What is shipped: names in pyproject exist, the wheel is small, pure and holds the kernels."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gpugrad as gg
from gpugrad.op import TABLE

tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_numpy_is_the_only_hard_dependency():
    assert PROJECT["project"]["dependencies"] == ["numpy>=2.0"]
    assert PROJECT["project"]["requires-python"] == ">=3.10"
    assert {"cuda12", "cuda13", "train", "plot", "test", "bench", "dev"} <= set(
        PROJECT["project"]["optional-dependencies"]
    )


def test_only_one_cupy_in_each_extra():
    for name, packages in PROJECT["project"]["optional-dependencies"].items():
        assert sum(p.startswith("cupy") for p in packages) <= 1, name


def test_every_table_entry_that_is_a_public_function_is_exported():
    """A dispatcher that is listed in a family's __all__ is the attribute of gpugrad of that name."""
    for name, op in TABLE.items():
        public = getattr(gg, name, None)
        if getattr(public, "op", None) is not None:
            assert public.op is op


def test_all_names_exist():
    assert sorted(n for n in gg.__all__ if not hasattr(gg, n)) == []
    assert len(gg.__all__) == len(set(gg.__all__))


def test_wheel(tmp_path):
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling: pip install hatchling")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    wheel = tmp_path / done.stdout.strip().splitlines()[-1]
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < json.loads((ROOT / "bench" / "budget.json").read_text())["wheel_bytes"]
    names = set(zipfile.ZipFile(wheel).namelist())
    for kernel in (ROOT / "kernels").rglob("*.*"):
        assert f"gpugrad/_kernels/{kernel.relative_to(ROOT / 'kernels')}" in names
    assert {"gpugrad/py.typed", "gpugrad/testing/emulator.h"} <= names
    assert not any(n.startswith(("tests/", "bench/", "examples/")) for n in names)
