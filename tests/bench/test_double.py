"""The GPU's way through a worker, on CuPy's double; launches a step are held to bench/budget.json."""

import json
from pathlib import Path

import pytest

from gpugrad.bench import gate, peers, report, workloads
from gpugrad.bench.worker import Worker, answer
from gpugrad.testing.emulator import compiler
from tests.bench.test_gate import reference
from tests.cuda.conftest import double  # noqa: F401 - a fixture

LAUNCHES = json.loads((Path(__file__).resolve().parents[2] / "bench" / "budget.json").read_text())["launches"]
pytestmark = pytest.mark.skipif(compiler() is None, reason="the emulator needs a C++ compiler")


def worker(name, column="gpugrad"):
    job = {"spec": peers.PEERS[column].spec, "package": "gpugrad", "workload": name, "device": "cuda",
           "dtype": "float32", "threads": 1}  # fmt: skip
    made = Worker(job)
    assert answer(made, "load") == {"state": "ok"}
    return made


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_gate_and_the_launches_of_a_step(double, name):  # noqa: F811
    made = worker(name)
    found = answer(made, "first", steps=gate.steps(made.workload))
    assert gate.difference(workloads.find(name), reference(name), found["digests"]) == ""
    assert 0 < made.peer.launches(made.step) <= LAUNCHES[name]


def test_times_are_those_of_events_and_the_pool_is_reported(double):  # noqa: F811
    made = worker("xent:4x5")
    assert answer(made, "first", steps=[1])["state"] == "ok"
    assert answer(made, "warm", seconds=0.001)["state"] == "ok"
    found = answer(made, "round", seconds=0.001)
    assert 0 < found["device"] <= found["wall"]
    found = answer(made, "finish")
    assert found["device_bytes"] > 0
    assert found["products"] == []


@pytest.mark.parametrize("column", ["gpugrad", "gpugrad-replay", "gpugrad-compiled"])
def test_products_say_what_they_were_computed_in(double, column):  # noqa: F811
    made = worker("mlp-sgd:4", column)
    found = answer(made, "first", steps=gate.steps(made.workload))
    assert gate.difference(workloads.find("mlp-sgd:4"), reference("mlp-sgd:4"), found["digests"]) == ""
    assert answer(made, "finish")["products"] == ["float32 in 32F"]
    rows = {column: {"state": "ok", "products": ["float32 in 32F"]}, "torch": {"state": "ok"}}
    assert report.computed({"workloads": [{"rows": rows}]}) == f"- Products of {column}: float32 in 32F."
