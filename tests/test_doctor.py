"""`gpugrad doctor`: every part is tried on its own, and what is missing comes with a remedy."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from gpugrad import backends, doctor
from gpugrad.backends import cuda
from gpugrad.cli import main
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler

by_part = lambda findings: {f.part: f for f in findings}


def test_without_a_gpu_it_says_why_and_is_no_fault(monkeypatch):
    monkeypatch.setattr(cuda, "find", lambda: (None, "CuPy is not installed\n  pip install it"))
    monkeypatch.setattr(backends, "_by_name", {"cpu": backends.get("cpu")})
    found = by_part(doctor.examine())
    assert found["gpu"][1:3] == ("absent", found["gpu"].seen)
    assert found["gpu"].seen.startswith("CuPy is not installed (")
    assert found["gpu"].remedy == "pip install it"
    assert found["cpu"].state == "ok"
    assert found["kernels"].state == found["matrix products"].state == "absent"
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0
    assert "pip install it" in done.output


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_with_a_gpu_kernels_and_products_are_tried(monkeypatch):
    monkeypatch.setattr(backends, "_by_name", {**backends._by_name, "cuda": cuda.load(fake_cupy)})
    monkeypatch.setattr(backends, "_by_type", {**backends._by_type, fake_cupy.ndarray: backends._by_name["cuda"]})
    fake_cupy.launched.clear()
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert {part["state"] for name, part in found.items() if name != "gpugrad train"} == {"ok"}
    assert "emulated, compute capability 9.0, 4 multiprocessors, 16 GB" in found["gpu"]["seen"]
    assert any(name.startswith("softmax_xent_bwd") for name in fake_cupy.launched)
    assert "precision highest; (32, 32) @ (32, 32) float32 NN, 32F" in found["matrix products"]["seen"]


def test_a_part_that_fails_does_not_hide_the_others(monkeypatch):
    def cpu():
        raise OSError("the disk is on fire")

    monkeypatch.setattr(doctor, "cpu", cpu)
    found = by_part(doctor.examine())
    assert found["cpu"].state == "broken"
    assert "the disk is on fire" in found["cpu"].seen
    assert found["versions"].state == "ok"
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 1
