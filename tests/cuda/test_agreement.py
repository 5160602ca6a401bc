"""The bound that docs/agreement.md publishes: how far an op on the CUDA backend may be from the CPU's."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np

import gpugrad.ops.optim  # noqa: F401 - fills the table
from gpugrad.kernel import Kernel
from gpugrad.op import TABLE

from ..ops.samples import collect

ROOT = Path(__file__).parent.parent.parent
BOUND = 8  # units in the last place of an array's largest value


def bench():
    spec = importlib.util.spec_from_file_location("agreement", ROOT / "bench" / "agreement.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["agreement"] = module
    spec.loader.exec_module(module)
    return module


def test_every_op_is_within_the_bound(gpu):
    found = bench().worst()
    assert len(found) > 150
    assert not {name: distance for name, distance in found.items() if not distance <= BOUND}


def test_the_published_table_has_every_kernel():
    text = (ROOT / "docs" / "agreement.md").read_text()
    named = set(re.findall(r"\w+", text))
    kernels = {n for n in collect() if n in TABLE and isinstance(TABLE[n].impls.special.get("cuda"), Kernel)}
    kernels = {n for n in kernels if TABLE[n].kind != "update"}
    assert kernels
    assert not kernels - named
    published = [float(d) for d in re.findall(r"\| ([\d.]+) \|$", text, re.M)]
    assert published
    assert max(published) <= BOUND


def test_the_distance_counts_units():
    apart = bench().apart
    one = np.ones(3, "float32")
    assert apart(one, one) == 0
    assert apart(one, np.nextafter(one, 2)) == 1
    assert apart(1000 * one, 1000 * one + np.array([0, 0, np.spacing(np.float32(1000))])) == 1
    assert apart(1e-9 * one, 2e-9 * one) < 0.01  # below the scale of 1
    assert apart(np.array([1, np.nan]), np.array([1, np.nan])) == 0
    assert apart(np.array([1, np.nan]), np.array([1, 2.0])) == float("inf")
    assert apart(np.array([1, 2]), np.array([1, 3])) == float("inf")
