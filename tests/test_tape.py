"""The walk and the graph: accumulation, lifetime, switches, hooks, spent graphs."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.bench import models
from gpugrad.errors import INTERNAL, PACKAGE, place
from gpugrad.state import next_seq, switched
from gpugrad.tape import history
from gpugrad.tensor import Node

ROOT = Path(__file__).parent.parent


def leaf(value):
    return gg.tensor(value, dtype=gg.float64, requires_grad=True)


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live_nodes() -> int:
    return sum(isinstance(o, Node) and o.op is not None for o in gc.get_objects())


# --- values -----------------------------------------------------------------------------------------------


def test_control_flow_decides_the_graph():
    def f(x):
        y = x
        while (y * y).sum() < 100:  # the number of steps depends on the data
            y = y * 1.5 if y[0] > 0 else y * -2.0
        return (y * y * y).sum()

    for start in ([0.3, 0.4], [-0.3, 0.4], [20.0, 1.0]):
        assert gg.gradcheck(f, [gg.tensor(start, dtype=gg.float64)])


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_a_tensor_used_k_times_gets_k_gradients(k):
    x = leaf([1.0, 2.0])
    total = sum((x * 3 for _ in range(k)), start=gg.zeros(2, dtype=gg.float64))
    total.sum().backward()
    assert x.grad.tolist() == [3.0 * k] * 2


def test_diamonds_are_walked_once():
    x = leaf(1.0)
    y = x
    for _ in range(60):  # 2**60 paths
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**60


def test_topological_order_where_breadth_first_fails():
    x = leaf(2.0)
    a = x * 3
    b = a * a  # a is reached at depth 1 and at depth 3
    (b * a).backward()
    assert x.grad.item() == 3 * 27 * 4.0


PROGRAM = """
import numpy as np, gpugrad as gg
rng = np.random.default_rng(0)
ws = [gg.tensor(rng.normal(size=(5, 5)), requires_grad=True) for _ in range(6)]
x = gg.tensor(rng.normal(size=(5, 5)))
for _ in range(3):
    for w in ws:
        x = gg.tanh(x @ w + sum(v * 0.1 for v in ws))
x.sum().backward()
print([float(w.grad.sum()).hex() for w in ws])
"""


def test_order_does_not_depend_on_the_hash_seed():
    outs = set()
    for seed in ("0", "1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        outs.add(done.stdout)
    assert len(outs) == 1


def test_leaf_gradients_are_their_own_memory():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (x + y).sum().backward()
    x.grad.data[:] = 7.0
    assert y.grad.tolist() == [1.0, 1.0]
    seed = gg.tensor([1.0, 1.0], dtype=gg.float64)
    z = leaf([0.0, 0.0])
    z.backward(seed)
    z.grad.data[:] = 5.0
    assert seed.tolist() == [1.0, 1.0]


def test_overwrite_mode():
    x = leaf(1.0)
    (2 * x).backward()
    (3 * x).backward(accumulate=False)
    assert x.grad.item() == 3.0


def test_gradient_has_the_parameters_dtype():
    x = gg.tensor([1.0, 2.0], dtype=gg.float32, requires_grad=True)
    y = gg.tensor([1.0, 2.0], dtype=gg.float64, requires_grad=True)
    (x * y).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (gg.float32, gg.float64)


# --- lifetime ---------------------------------------------------------------------------------------------


def test_a_hundred_thousand_ops_forward_backward_deletion():
    x = leaf(np.ones(3))
    start = time.perf_counter()
    y = x
    for _ in range(100_000):
        y = y * 1.0
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
    y = x
    for _ in range(100_000):
        y = y + x
    del y  # a graph that nobody differentiated
    assert time.perf_counter() - start < 5 * (3 if os.environ.get("PYTEST_XDIST_WORKER") else 1)


def test_memory_is_freed_by_reference_count_alone(no_collector):
    before = live_nodes()
    x = leaf(np.ones(1000))
    y = gg.exp(x * 2)
    freed = weakref.ref(y.node)
    z = (y * y).sum()
    assert live_nodes() > before
    del y, z
    assert freed() is None
    assert live_nodes() == before


def test_backward_frees_what_was_saved_and_retain_keeps_it(no_collector):
    x = leaf(np.ones(1000))
    y = gg.exp(x * 2)
    held = [weakref.ref(a) for a in (y.data,)]
    z = (y * y).sum()
    del y
    assert held[0]() is not None
    z.backward(retain_graph=True)
    assert held[0]() is not None
    z.backward()
    assert held[0]() is None
    assert x.grad.numpy()[0] == pytest.approx(2 * 4 * np.exp(4))


def test_running_loss_leaks_nothing(no_collector):
    w = leaf(np.ones(10))
    running = 0.0
    counts = []
    for _ in range(12):
        loss = (w * w).sum()
        loss.backward()
        running = running + loss
        counts.append(live_nodes())
    assert running.item() == 120.0
    assert running.node is None
    assert counts[5] == counts[-1]


def test_inputs_that_no_rule_reads_are_not_kept(no_collector):
    x = leaf(np.ones(1000))
    y = x
    alive = []
    for _ in range(10):
        y = y + 1.0
        alive.append(weakref.ref(y.data))
    assert sum(a() is not None for a in alive) == 1


# --- spent graphs -----------------------------------------------------------------------------------------


def test_second_backward_names_the_first():
    x = leaf(1.0)
    y = x * x
    y.backward()  # the line to be named
    with pytest.raises(gg.errors.GraphError) as caught:
        y.backward()
    assert "the line to be named" in str(caught.value)
    assert "retain_graph=True" in str(caught.value)


def test_a_shared_part_is_spent_too():
    x = leaf(1.0)
    h = x * x
    a, b = h * 2, h * 3
    a.backward()
    with pytest.raises(gg.errors.GraphError, match=r"a\.backward\(\)"):
        b.backward()


def test_a_graph_that_is_partly_spent_is_left_as_it_was():
    x = leaf(1.0)
    h = x * x
    a, b = h * 2, gg.exp(x) * x
    c = b + h
    a.backward()
    with pytest.raises(gg.errors.GraphError, match="already differentiated"):
        c.backward()
    b.backward()  # nothing of it had been released
    assert x.grad.item() == pytest.approx(4 + 2 * np.e, rel=1e-15)


def test_history_is_what_the_roots_depend_on_oldest_first_and_once():
    random = np.random.default_rng(0)
    made = [leaf(1.0) for _ in range(3)]
    for _ in range(200):
        i, j = random.integers(0, len(made), 2)
        made.append(made[i] * made[j])
    roots = [made[i].node for i in (150, 202, 202, 90)]
    wanted, stack = set(), list(roots)
    while stack:
        node = stack.pop()
        if node not in wanted:
            wanted.add(node)
            stack.extend(node.parents)
    found = history(roots)
    assert set(found) == wanted
    assert len(found) == len(wanted)
    assert [n.seq for n in found] == sorted(n.seq for n in wanted)
    born = sorted(n.seq for n in wanted)[len(wanted) // 2]
    young = history(roots, born)
    assert {n for n in young if n.seq >= born} <= wanted
    assert {p for n in young if n.seq >= born for p in n.parents} <= set(young)


def test_a_node_of_a_chain_and_its_gradient_take_less_than_half_a_kilobyte(no_collector):
    """With its ten float32 values: nothing is kept of the walk behind it, and one shape serves the chain."""
    w, n = gg.tensor(np.ones(10, "float32"), requires_grad=True), 5_000
    (w * w).sum().backward()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        y = w
        for _ in range(n):
            y = y * w
        assert y.node.shape is y.node.parents[0].shape
        y.sum().backward()
        assert tracemalloc.get_traced_memory()[1] - before < 480 * n
    finally:
        tracemalloc.stop()


def test_a_long_chain_gives_the_collector_one_object_a_node(no_collector):
    """What it goes through again and again while a graph grows: neither parents nor saved values are tuples."""
    w = leaf(np.ones(3))
    y = w * w
    before = len(gc.get_objects())
    for _ in range(500):
        y = gg.tanh(y) * w - 1.0
    assert len(gc.get_objects()) - before <= 1500 + 10


@pytest.mark.parametrize("act", [gg.exp, gg.relu])
def test_what_a_call_saved_is_gone_when_the_next_rule_has_run(act, no_collector):
    x = leaf(np.ones((30, 30)))
    y = gg.tanh(x)
    z = act(y)
    s = gg.softmax(z)
    saved, alive = weakref.ref(s.data), []
    y.register_hook(lambda g: alive.append(saved() is not None))
    loss = (s * s).sum()
    del s, z, y
    assert saved() is not None
    loss.backward()
    assert alive == [False]


def test_nodes_tell_what_they_saved_and_of_whom():
    x, y = leaf(np.ones(3)), leaf(np.ones(3))
    a, b, c = gg.tanh(x), x * y, x * gg.asarray(np.ones(3))
    d = gg.softmax(b)
    assert a.node.parents == (x.node,)
    assert a.node.saved == (a.data, None)
    assert b.node.parents == (x.node, y.node)
    assert [v is w for v, w in zip(b.node.saved, (None, x.data, y.data))] == [True] * 3
    assert c.node.parents == (x.node, None)
    assert c.node.saved[1] is None
    assert d.node.parents == (b.node,)
    assert [n.attrs for n in (a.node, b.node, x.node)] == [{}] * 3
    (a + b + c + d).sum().backward()
    assert all(n.spent is not None and not any(n.parents) for n in (a.node, b.node, c.node, d.node))
    assert x.node.spent is None
    assert all(v is None for n in (a.node, b.node, c.node, d.node) for v in n.saved)


def test_every_call_knows_its_own_line():
    """Also where functions take turns, or call through functions of gpugrad's own."""

    def first(x):
        return x * 2  # the line of first

    def second(x):
        return gg.nn.functional.linear(x, x)  # the line of second

    x = leaf(np.ones((2, 2)))
    for f, line in [(first, "first"), (second, "second")] * 2:
        node = f(x).node
        assert f"the line of {line}" in place(node.code, node.lasti)


def test_models_of_the_benchmark_and_the_tests_are_users_code():
    """A call looks for its user's line only as far as it must; a model of the benchmark stands for a user's."""
    inside = {name: INTERNAL[PACKAGE + name.replace("/", os.sep)] for name in (
        "nn/layers.py", "op.py", "testing.py", "bench/models.py", "testing/mutants.py",
    )}  # fmt: skip
    assert list(inside.values()) == [True, True, True, False, False]
    assert not INTERNAL[os.sep.join(("", "home", "user", "gpugrad", "op.py"))]
    y = models.deep(SimpleNamespace(sum=gg.sum), [leaf(np.ones(3)), leaf(np.ones(3))], [], links=2)
    assert y.node.parents[0].code is models.deep.__code__


def test_a_switch_of_one_thread_leaves_the_others_recording():
    x, seen = leaf(1.0), []
    ready, done = threading.Event(), threading.Event()

    def other():
        with gg.no_grad():
            ready.set()
            done.wait()
            seen.append((x * x).requires_grad)
        seen.append((x * x).requires_grad)

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    here = [(x * x).requires_grad, gg.exp(x).requires_grad, x.sum().requires_grad]
    with gg.no_grad():
        here.append((x * x).requires_grad)
        with gg.enable_grad():
            here.append((x * x).requires_grad)
    here.append((x * x).requires_grad)
    done.set()
    thread.join()
    assert here == [True, True, True, False, True, True]
    assert seen == [False, True]
    assert not switched


def test_retain_graph_gives_the_same_twice():
    x = leaf(2.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 8.0


# --- switches ---------------------------------------------------------------------------------------------


def test_no_node_is_made_under_no_grad():
    x = leaf(np.ones(3))
    with gg.no_grad():
        first = next_seq()
        y = gg.tanh(x * 2 + 1).sum()
        assert next_seq() == first + 1
    assert not y.requires_grad


def test_enable_grad_inside_no_grad_and_nesting():
    x = leaf(1.0)
    with gg.no_grad():
        with gg.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
        assert not gg.is_grad_enabled()
    assert gg.is_grad_enabled()


def test_switch_as_decorator_and_on_error():
    x = leaf(1.0)

    @gg.no_grad()
    def f():
        return x * 2

    assert not f().requires_grad
    with pytest.raises(ZeroDivisionError), gg.no_grad():
        _ = 1 / 0
    assert gg.is_grad_enabled()


def test_generators_keep_their_own_switch():
    x = leaf(1.0)

    @gg.no_grad()
    def batches():
        for _ in range(2):
            yield (x * 2).requires_grad

    for inside in batches():
        assert not inside
        assert gg.is_grad_enabled()  # while the generator is suspended


def test_the_switch_is_per_thread():
    x, seen = leaf(1.0), []
    with gg.no_grad():
        t = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        t.start()
        t.join()
    assert seen == [True]


def test_two_threads_differentiate_at_once():
    results = {}

    def work(k):
        for _ in range(50):
            x = leaf(np.full(10, float(k)))
            (x * x * x).sum().backward()
            results.setdefault(k, set()).add(float(x.grad.data[0]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {k: {3.0 * k * k} for k in range(4)}


# --- detach, hooks, retained gradients ----------------------------------------------------------------------


def test_detach_cuts_and_keeps_the_value():
    x = leaf(3.0)
    y = x * x
    (y.detach() * x).backward()
    assert x.grad.item() == 9.0
    assert y.detach().data is y.data


def test_hook_sees_replaces_and_is_removed():
    x, seen = leaf([1.0, 2.0]), []
    y = x * 2
    handle = y.register_hook(lambda g: seen.append(g.tolist()))
    replace = y.register_hook(lambda g: g * 10)
    y.sum().backward(retain_graph=True)
    assert seen == [[1.0, 1.0]]
    assert x.grad.tolist() == [20.0, 20.0]
    replace.remove()
    handle.remove()
    x.zero_grad()
    y.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
    assert len(seen) == 1


def test_hook_on_a_leaf_sees_the_whole_gradient():
    x, seen = leaf(3.0), []
    x.register_hook(lambda g: seen.append(g.item()))
    (x * x + x).backward()
    assert seen == [7.0]


def test_hook_of_wrong_shape_is_refused():
    x = leaf([1.0, 2.0])
    y = x * 2
    y.register_hook(lambda g: g.sum())
    with pytest.raises(gg.errors.ShapeError, match="hook"):
        y.sum().backward()


def test_hooks_on_a_constant_are_refused():
    with pytest.raises(gg.errors.GraphError):
        gg.tensor(1.0).register_hook(print)


def test_retain_grad_of_an_intermediate():
    x = leaf(3.0)
    y = x * x
    y.retain_grad()
    (y * 2).backward()
    assert y.grad.item() == 2.0
    z = x * x
    (z * 2).backward()
    assert z.grad is None


def test_a_hook_that_mentions_its_tensor_does_not_outlive_it():
    def graph():
        y = leaf(np.ones(10)) * 2
        y.register_hook(lambda g: y.shape and None)
        return weakref.ref(y.node)

    gone = graph()
    gc.collect()
    assert gone() is None


# --- seeds ------------------------------------------------------------------------------------------------


def test_non_scalar_needs_a_cotangent():
    x = leaf([1.0, 2.0])
    y = x * x
    with pytest.raises(gg.errors.GraphError) as caught:
        y.backward()
    assert "[2]" in str(caught.value)
    assert ".sum()" in str(caught.value)
    y.backward(gg.tensor([1.0, 10.0], dtype=gg.float64))
    assert x.grad.tolist() == [2.0, 40.0]


def test_cotangent_of_wrong_shape():
    x = leaf([1.0, 2.0])
    with pytest.raises(gg.errors.ShapeError, match=r"\[3\].*expected \[2\]"):
        (x * x).backward(gg.ones(3, dtype=gg.float64))


def test_backward_of_a_constant():
    with pytest.raises(gg.errors.GraphError, match="does not depend"):
        gg.tensor(1.0).backward()


def test_integers_cannot_require_gradients():
    with pytest.raises(gg.errors.DTypeError, match="int64"):
        gg.tensor([1, 2], requires_grad=True)


def test_a_one_element_tensor_of_any_rank_is_scalar_enough():
    x = leaf([[2.0]])
    (x * x).backward()
    assert x.grad.tolist() == [[4.0]]
