"""Memory of a GPU: the report adds up to the pool, and an op that gets no memory says what holds it."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.errors import OutOfMemoryError


def test_the_report_adds_up_to_the_pool(gpu):
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).to("cuda")
    x = gg.tensor(np.ones((16, 64), "f"), device="cuda")
    loss = model(x).sum()
    report = gg.memory_report("cuda")
    names = {h.what for h in report.held}
    assert names >= {"0.weight", "2.bias"}
    assert names & {"saved by affine", "saved by relu"}  # one array: both keep it
    assert report.total + report.elsewhere == gg.memory()["used"]
    assert report.elsewhere >= 0
    assert loss.shape == ()


def test_an_op_without_memory_lists_the_largest_and_the_batch_that_fits(gpu):
    gc.collect()
    gg.release_memory()
    x = gg.tensor(np.ones((1024, 256), "f"), device="cuda", requires_grad=True)
    try:
        gg.set_memory_limit(gg.memory()["reserved"] + 5 * x.nbytes // 2)
        with pytest.raises(OutOfMemoryError) as caught:
            gg.exp(gg.sin(gg.cos(x)))
    finally:
        gg.set_memory_limit(0)
    text = str(caught.value)
    assert text.startswith("[exp] Out of memory")
    assert "saved by sin" in text or "result of cos" in text or "saved by cos" in text
    assert "test_held.py" in text
    assert "first axis, now 1024, about " in text
    assert isinstance(caught.value, MemoryError)


def test_a_rule_without_memory_says_so_too(gpu):
    gc.collect()
    gg.release_memory()
    x = gg.tensor(np.ones((1024, 256), "f"), device="cuda", requires_grad=True)
    y = gg.exp(gg.sin(x))
    try:
        gg.set_memory_limit(gg.memory()["reserved"] + x.nbytes // 2)
        with pytest.raises(OutOfMemoryError, match="backward") as caught:
            y.sum().backward()
    finally:
        gg.set_memory_limit(0)
    assert "tensor" in str(caught.value).partition("most of it in")[2]
