"""The memory report: each piece of memory once, named, with the line that made it."""

from __future__ import annotations

import gc
import inspect

import numpy as np

import gpugrad as gg
from gpugrad import nn


def found(device: str = "cpu") -> dict[str, list[tuple[int, ...]]]:
    names: dict[str, list[tuple[int, ...]]] = {}
    for h in gg.memory_report(device).held:
        names.setdefault(h.what, []).append(h.shape)
    return names


def test_parameters_and_gradients_are_named_as_the_model_names_them():
    model = nn.Sequential(nn.Linear(7, 311), nn.Linear(311, 3))
    model(gg.ones((5, 7))).sum().backward()
    names = found()
    assert (311, 7) in names["0.weight"]  # models of other tests may be alive
    assert (3, 311) in names["gradient of 1.weight"]


def test_memory_is_counted_once_with_the_line_that_made_it():
    x = gg.tensor(np.ones((503, 3)), requires_grad=True)
    y = gg.exp(x)
    line = inspect.currentframe().f_lineno - 1
    z = y * y  # holds y as well
    ours = [h for h in gg.memory_report().held if h.shape == (503, 3)]
    assert sorted(h.what for h in ours) == ["result of exp", "result of multiply", "tensor"]
    (made,) = [h.line for h in ours if h.what == "result of exp"]
    assert f"{__file__}:{line}:" in made
    assert all(h.bytes == x.nbytes for h in ours)
    del y
    assert "saved by exp" in found()
    assert z.shape == (503, 3)


def test_a_freed_graph_is_gone():
    x = gg.tensor(np.ones(401), requires_grad=True)
    loss = gg.exp(gg.sin(x)).sum()
    assert (401,) in found()["saved by exp"]
    loss.backward()
    gc.collect()
    assert (401,) not in found().get("saved by exp", [])


def test_text():
    kept = gg.ones((4096, 5))
    text = str(gg.memory_report())
    assert text.startswith("cpu: ")
    assert "float32 4096x5  tensor" in text
    assert kept.size
