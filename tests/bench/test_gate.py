"""Nobody passes the gate who computes something else."""

import dataclasses
import functools

import numpy as np
import pytest

from gpugrad.bench import gate, peers, workloads
from gpugrad.bench.worker import Worker, answer

TRAINED = ["twolayer:8", "mlp-sgd:16", "mlp-adam:16", "lenet:4"]
SMALL = [
    *TRAINED, "overhead:20", "deep:50", "elementwise:1k", "xent:16x5", "hvp:8", "resnet:1x4x8x4",
    "gpt:1x2x16x8x2", "loader:300",
]  # fmt: skip


def first(spec, name, dtype=None):
    """The digests of the first steps, in this process."""
    dtype = dtype or workloads.find(name).dtype
    worker = Worker({"spec": spec, "package": "numpy", "workload": name, "device": "cpu", "dtype": dtype, "threads": 1})
    found = answer(worker, "load")
    if found["state"] == "ok":
        found = answer(worker, "first", steps=gate.steps(worker.workload))
    return found["digests"] if found["state"] == "ok" else found


@functools.cache
def reference(name):
    found = first(peers.PEERS["numpy"].spec, name, "float64")
    return first(peers.PEERS["gpugrad"].spec, name, "float64") if isinstance(found, dict) else found


def verdict(spec, name):
    return gate.difference(workloads.find(name), reference(name), first(spec, name))


def odd(name):
    return f"tests.bench.odd_peers:{name}"


@pytest.mark.parametrize("name", SMALL)
def test_gpugrad_passes(name):
    assert verdict(peers.PEERS["gpugrad"].spec, name) == ""


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("column", ["gpugrad-replay", "gpugrad-compiled"])
def test_replays_pass(monkeypatch, column, name):
    """All but a loader and a chain of any length, which say why they do not take part."""
    for variable, value in peers.PEERS[column].environment.items():
        monkeypatch.setenv(variable, value)
    found = first(peers.PEERS[column].spec, name)
    if isinstance(found, dict):
        assert name in ("deep:50", "loader:300"), found
        assert found["state"] == "n/a"
        assert found["why"]
        return
    assert gate.difference(workloads.find(name), reference(name), found) == ""


@pytest.mark.parametrize("name", [n for n in SMALL if n.partition(":")[0] not in ("resnet", "gpt")])
def test_numpy_by_hand_passes_and_is_what_gpugrad_computes_in_float64(name):
    """The reference has two independent sources wherever there is one by hand."""
    assert verdict(peers.PEERS["numpy"].spec, name) == ""
    ours = first(peers.PEERS["gpugrad"].spec, name, "float64")
    for a, b in zip(reference(name), ours, strict=True):
        assert all(gate.distance(x, y) < 1e-9 for x, y in zip(a, b, strict=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # uphill, numbers overflow
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("peer", ["Doubled", "Uphill", "Forgetful", "Vanishing", "Frozen"])
def test_a_wrong_optimiser_or_gradient_is_refused_by_the_losses(peer, name):
    assert verdict(odd(peer), name).startswith("loss 2 differs by ")


@pytest.mark.parametrize("name", ["overhead:20", "deep:50", "elementwise:1k", "xent:16x5"])
@pytest.mark.parametrize("peer", ["Uphill", "Forgetful", "Imprecise", "Vanishing"])
def test_a_wrong_gradient_is_refused(peer, name):
    assert verdict(odd(peer), name).startswith("gradient 1 of step 1 differs by ")


@pytest.mark.parametrize(
    "name, said", [("mlp-adam:16", "loss 4 differs"), ("xent:16x5", "gradient 1 of step 4 differs")]
)
def test_what_is_only_right_at_first_is_refused(name, said):
    """The step that is timed is the one after tracing and compiling."""
    assert verdict(odd("Stale"), name).startswith(said)


@pytest.mark.parametrize("name", ["twolayer:8", "mlp-sgd:16"])
def test_gradients_one_percent_too_long_show_in_the_losses(name):
    assert "differs by" in verdict(odd("Imprecise"), name)


@pytest.mark.parametrize("name", ["resnet:1x4x8x4", "gpt:1x2x16x8x2"])
def test_a_doubled_rate_shows_in_the_larger_models(monkeypatch, name):
    """These have no derivative by hand: gpugrad itself is given the wrong rate."""
    right = reference(name)
    workload = workloads.find(name)
    rates = {**dict(workload.rates), "lr": 2 * dict(workload.rates)["lr"]}
    wrong = dataclasses.replace(workload, rates=tuple(rates.items()))
    monkeypatch.setattr(workloads, "find", lambda _: wrong)
    assert "differs by" in gate.difference(workload, right, first(peers.PEERS["gpugrad"].spec, name))


@pytest.mark.parametrize("factor, refused", [(1, False), (2, True)])
def test_bfloat16_is_held_to_float64_as_well(monkeypatch, factor, refused):
    """With what eight bits of precision allow, which a doubled rate exceeds."""
    pytest.importorskip("ml_dtypes")
    workload = workloads.find("gpt-bf16:2x4x64x16x4")
    right = reference(workload.name)
    given = dataclasses.replace(workload, rates=(("lr", factor * 1e-3),))
    monkeypatch.setattr(workloads, "find", lambda _: given)
    found = first(peers.PEERS["gpugrad"].spec, workload.name)
    assert bool(gate.difference(workload, right, found)) == refused


def test_all_start_from_the_same_numbers():
    p32, b32 = workloads.find("mlp-sgd:16").arrays("float32")
    p64, b64 = workloads.find("mlp-sgd:16").arrays("float64")
    for a, b in zip([*p32, *b32], [*p64, *b64], strict=True):
        assert a.dtype != np.float64
        assert np.array_equal(a, b)
    again, _ = workloads.find("mlp-sgd:16").arrays("float32")
    assert all(np.array_equal(a, b) for a, b in zip(p32, again, strict=True))


def test_a_difference_is_told_in_words():
    workload = workloads.find("mlp-sgd:16")
    a = [[gate.digest(np.array(2.0))], [gate.digest(np.array(1.0))]]
    b = [[gate.digest(np.array(2.0))], [gate.digest(np.array(1.1))]]
    assert gate.difference(workload, a, b) == "loss 2 differs by 1.0e-01 (1.1 for 1; 2e-04 is allowed)"
    assert gate.difference(workload, a, b[:1]) == "1 steps, expected 2"
    assert gate.difference(workload, a, [[*row, *row] for row in a]) == "step 1 returns 2 arrays, expected 1"
    assert gate.difference(workload, a, a) == ""


def test_a_digest_sees_one_wrong_element_of_many():
    x = np.random.default_rng(0).normal(size=5000)
    y = x.copy()
    y[3333] += 100
    assert gate.distance(gate.digest(x), gate.digest(y)) > 1e-2
    assert gate.distance(gate.digest(x), gate.digest(x.reshape(50, 100).copy())) == 0
    assert gate.distance(gate.digest(x), gate.digest(x[:10])) == np.inf
    assert gate.distance(gate.digest(np.zeros(3)), gate.digest(np.zeros(3))) == 0
    assert gate.distance(gate.digest(np.zeros(3)), gate.digest(np.ones(3))) == np.inf


@pytest.mark.parametrize("package", ["torch", "jax", "autograd", "mygrad", "tinygrad"])
def test_other_frameworks_agree_with_the_reference(package):
    """Wherever they are installed: every model of the dialect that they can do."""
    pytest.importorskip(package)
    column = {"jax": "jax.jit"}.get(package, package)
    passed = 0
    for name in [n for n in SMALL if package != "tinygrad" or n in ("twolayer:8", "mlp-adam:16", "xent:16x5")]:
        found = first(peers.PEERS[column].spec, name)
        if isinstance(found, dict):
            assert found["state"] == "n/a", (name, found)
            continue
        assert gate.difference(workloads.find(name), reference(name), found) == "", name
        passed += 1
    assert passed >= 3
