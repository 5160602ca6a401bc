"""replay: the bits of eager steps, new programs where something changed, errors with their lines."""

from __future__ import annotations

import random
import re
import threading
import types
import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import compiler, execute, losses, nn, optim, proof, recorded
from gpugrad.errors import DomainError, GraphError, ReplayError
from gpugrad.nn import functional as F
from gpugrad.op import TABLE
from gpugrad.ops.random import Generator
from gpugrad.optim import schedules
from gpugrad.recorded import LIMIT, MOST
from gpugrad.tree import tree_leaves

from .ops.samples import collect

CALLS = 7  # one eager, one traced, one proved, the rest replayed


@pytest.fixture(autouse=True)
def _one_sequence_of_numbers():
    before = gg.random.default.state_dict()
    yield
    gg.random.default.load_state_dict(before)


def f32(*shape, seed=0):
    return gg.asarray(np.random.default_rng(seed).normal(size=shape).astype("float32"))


def labels(n, classes, seed=0):
    return gg.asarray(np.random.default_rng(seed).integers(0, classes, n))


# --- whole training steps -------------------------------------------------------------------------------------


def training(model, opt, loss=F.cross_entropy, clip=None):
    def step(x, y):
        opt.zero_grad()
        value = loss(model(x), y)
        value.backward()
        if clip:
            optim.clip_grad_norm(model.parameters(), clip)
        opt.step()
        return value

    return model, opt, step


def mlp(*extra):
    return nn.Sequential(nn.Linear(12, 16), *extra, nn.ReLU(), nn.Linear(16, 5))


def flat_batch(i):
    return f32(8, 12, seed=i), labels(8, 5, seed=i)


class LeNet(nn.Module):
    def __init__(self):
        self.first, self.second = nn.Conv2d(1, 4, 5, padding=2), nn.Conv2d(4, 6, 3)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6 * 2 * 2, 5)

    def forward(self, x):
        x = self.pool(gg.tanh(self.first(x)))
        x = self.pool(gg.tanh(self.second(x)))
        return self.head(x.reshape(x.shape[0], -1))


class Text(nn.GPT):
    """Logits of all positions as rows."""

    def forward(self, ids):
        return super().forward(ids).reshape(-1, self.vocabulary)


def text(rotary):
    model = Text(11, 6, width=8, depth=2, heads=2, dropout=0.1, rotary=rotary)
    return training(model, optim.AdamW(model.parameters(), 0.01))


STEPS = {
    "two-layer net": lambda: training(m := mlp(), optim.SGD(m.parameters(), 0.1)),
    "momentum": lambda: training(m := mlp(), optim.SGD(m.parameters(), 0.1, momentum=0.9, nesterov=True)),
    "adam": lambda: training(m := mlp(), optim.Adam(m.parameters(), 0.01)),
    "adamw, no decay of biases": lambda: training(m := mlp(), optim.AdamW(m.parameters(), 0.01, no_decay=True)),
    "dropout": lambda: training(m := mlp(nn.Dropout(0.3)), optim.Adam(m.parameters(), 0.01)),
    "batch norm": lambda: training(m := mlp(nn.BatchNorm1d(16)), optim.SGD(m.parameters(), 0.1)),
    "clipped": lambda: training(m := mlp(), optim.Adam(m.parameters(), 0.01), clip=0.1),
    "squares of parameters": lambda: training(
        m := mlp(), optim.SGD(m.parameters(), 0.1),
        loss=lambda x, y: F.cross_entropy(x, y) + 0.01 * sum(gg.sum(p * p) for p in m.parameters()),
    ),
    "lenet": lambda: training(m := LeNet(), optim.SGD(m.parameters(), 0.1, momentum=0.9)),
    "text": lambda: text(True),
    "text, learned positions": lambda: text(False),
}  # fmt: skip


def images(i):
    return f32(4, 1, 12, 12, seed=i), labels(4, 5, seed=i)


def sentences(i):
    return labels(18, 11, seed=i).reshape(3, 6), labels(18, 11, seed=i + 50)


BATCHES = {"lenet": images, "text": sentences, "text, learned positions": sentences}


def run(make, wrap, batch, between=lambda i, opt: None):
    """Results, parameters, gradients, state and random state after every call."""
    gg.random.seed(7)
    model, opt, step = make()
    step = wrap(step)
    seen = []
    for i in range(CALLS):
        between(i, opt)
        loss = step(*batch(i))
        state = [t for g in opt.param_groups for ts in (*g.state.values(), g.counters.values()) for t in ts]
        tensors = [loss, *model.parameters(), *model.buffers(), *(p.grad for p in model.parameters()), *state]
        seen.append([t.numpy(copy=True) for t in tensors] + [gg.random.default.state_dict()["counter"]])
    return seen, step


def assert_same(got, want):
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        for x, y in zip(a, b, strict=True):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), f"call {i}"


@pytest.mark.parametrize("name", STEPS)
def test_a_replayed_step_is_the_eager_step(name):
    batch = BATCHES.get(name, flat_batch)
    want, _ = run(STEPS[name], lambda f: f, batch)
    got, step = run(STEPS[name], gg.replay, batch)
    assert_same(got, want)
    assert step.replays == CALLS - 3
    assert len(step.records) == 1


def test_a_learning_rate_takes_effect_without_a_new_program():
    def between(i, opt):
        opt.lr = 0.1 / (i + 1)

    want, _ = run(STEPS["adam"], lambda f: f, flat_batch, between)
    got, step = run(STEPS["adam"], gg.replay, flat_batch, between)
    assert_same(got, want)
    assert (step.replays, len(step.records)) == (CALLS - 3, 1)


def test_a_schedule_beside_the_step():
    def between():
        applied = {}

        def advance(i, opt):
            schedule = applied.setdefault(id(opt), schedules.Schedule(opt, schedules.Cosine(10)))
            if i:
                schedule.step()

        return advance

    want, _ = run(STEPS["momentum"], lambda f: f, flat_batch, between())
    got, step = run(STEPS["momentum"], gg.replay, flat_batch, between())
    assert_same(got, want)
    assert step.replays == CALLS - 3


def test_loss_scaling_with_an_overflow():
    def make():
        model = mlp()
        opt, scaler = optim.SGD(model.parameters(), 0.1), optim.GradScaler(init_scale=2.0**10, growth_interval=2)

        def step(x, y):
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
            return loss, scaler._scale * 1

        return model, opt, step

    def batch(i):
        x, y = flat_batch(i)
        return (x * 1e38 * 1e5 if i == 4 else x), y

    results = []
    for wrap in (lambda f: f, gg.replay):
        gg.random.seed(7)
        model, _, step = make()
        step, seen = wrap(step), []
        with np.errstate(all="ignore"):
            for i in range(CALLS):
                loss, scale = step(*batch(i))
                seen.append([t.numpy(copy=True) for t in (loss, scale, *model.parameters())])
        results.append(seen)
    assert_same(*results)
    assert len({float(row[1]) for row in results[0]}) > 2
    assert step.replays == CALLS - 3


def test_gradients_accumulate_over_calls():
    def grads(wrap):
        p = gg.tensor(np.arange(3.0), requires_grad=True)

        @wrap
        def step(x):
            (p * p * x).sum().backward()

        out = []
        for i in range(CALLS):
            step(f32(3, seed=i).astype("float64"))
            out.append([p.grad.numpy(copy=True)])
        return out

    assert_same(grads(gg.replay), grads(lambda f: f))


def test_gradients_that_come_through_the_same_array_are_apart():
    """Rules hand cotangents on as they are; leaves get copies, which may then be changed in place one by one."""

    def grads(wrap):
        p, q = (gg.tensor(np.arange(1.0, 5.0), requires_grad=True) for _ in range(2))

        @wrap
        def step(x):
            for t in (p, q):
                t.zero_grad()
            total = gg.maximum(p + q, 0.0) * x
            (total[:3] + 0).sum().backward()
            optim.clip_grad_norm([p, q], 0.5)

        out = []
        for i in range(CALLS):
            step(f32(4, seed=i).astype("float64"))
            out.append([p.grad.numpy(copy=True), q.grad.numpy(copy=True)])
        return out

    assert_same(grads(gg.replay), grads(lambda f: f))


def test_gradients_cleared_outside_are_made_anew():
    p = gg.tensor(np.arange(3.0), requires_grad=True)

    @gg.replay
    def step(x):
        (p * p * x).sum().backward()

    for i in range(2 * CALLS):
        if i % 3 != 2:
            p.zero_grad()
        before = None if p.grad is None else p.grad.numpy(copy=True)
        x = f32(3, seed=i).astype("float64")
        step(x)
        want = 2 * p.numpy() * x.numpy()
        assert np.array_equal(p.grad.numpy(), want if before is None else before + want)
    assert step.replays > 3


def test_functional_gradients_and_higher_derivatives():
    def energy(w, x):
        return gg.sum(gg.tanh(x @ w) ** 2)

    cases = {
        "value_and_grad": lambda w, x: gg.value_and_grad(energy)(w, x),
        "hvp": lambda w, x: gg.hvp(lambda v: energy(v, x), (w,), (w * w,)),
        "grad of grad": lambda w, x: gg.grad(lambda v: gg.sum(gg.grad(energy)(v, x) ** 2))(w),
        "jvp": lambda w, x: gg.jvp(lambda v: energy(v, x), (w,), (w,)),
        "vmap": lambda w, x: gg.vmap(lambda row: gg.grad(energy)(w, row.reshape(1, -1)))(x),
        "checkpoint": lambda w, x: gg.grad(gg.checkpoint(energy))(w, x),
    }
    for name, f in cases.items():
        step = gg.replay(f)
        for i in range(CALLS):
            w, x = f32(4, 3, seed=i), f32(5, 4, seed=i + 9)
            got, want = (tree_leaves(g(w, x)) for g in (step, f))
            assert_same([[t.numpy() for t in got]], [[t.numpy() for t in want]])
        assert step.replays == CALLS - 3, name


def test_random_draws_go_on_as_in_eager_steps():
    def drawn(wrap):
        generator = Generator(5)

        @wrap
        def step(x):
            mask = generator.bernoulli(0.5, x.shape)
            return x * mask, generator.uniform((2,)), generator.permutation(4)

        return [[t.numpy(copy=True) for t in step(f32(6, seed=i))] for i in range(CALLS)]

    got = drawn(gg.replay)
    assert_same(got, drawn(lambda f: f))
    assert len({row[1].tobytes() for row in got}) == CALLS


def test_arrays_outside_are_read_anew_and_written_in_place():
    table, total, seen = np.ones(3, "float32"), gg.zeros(3), []
    index = gg.asarray([2, 0])

    @gg.replay
    def step(x):
        with gg.no_grad():
            total[...] = total + x * table
            total[index] = 0.5 * total[index]
        return gg.sin(table) + 0, total * 1

    want = np.zeros(3, "float32")
    for i in range(CALLS):
        table[:] = i + 1
        x = f32(3, seed=i)
        sines, now = step(x)
        want = want + x.numpy() * table
        want[[2, 0]] = np.float32(0.5) * want[[2, 0]]
        assert np.array_equal(sines.numpy(), np.sin(table))
        assert np.array_equal(now.numpy(), want)
        seen.append(now)
    assert step.replays == CALLS - 3
    assert not np.array_equal(seen[-1].numpy(), seen[-2].numpy())  # results are new arrays


def test_arrays_made_in_the_step_start_anew_every_time():
    @gg.replay
    def step(x):
        h = gg.zeros(3)
        h[1] = x.sum()
        h[0] = h[1] + gg.linspace(0, 1, 3)[2]
        return h

    for i in range(CALLS):
        x = f32(4, seed=i)
        s = x.numpy().sum()
        assert step(x).numpy().tolist() == [s + np.float32(1), s, 0]
    assert step.replays == CALLS - 3


def test_tensors_from_outside_come_back_as_they_are():
    p, state = gg.ones(3).requires_grad_(), gg.zeros(40_000)
    step = gg.replay(lambda x: (p, state[:5], x, p.detach()))
    for i in range(CALLS):
        x = f32(3, seed=i)
        out = step(x)
        assert out[0] is p
        assert all(np.shares_memory(a.data, b.data) for a, b in zip(out[1:], (state, x, p)))
    assert step.replays == CALLS - 3


def test_steps_with_nothing_to_compute():
    for f, want in ((lambda x: 3, 3), (lambda x: None, None), (lambda x: [x], None)):
        step = gg.replay(f)
        results = [step(gg.ones(2)) for _ in range(5)]
        assert want is None or results == [want] * 5
        assert step.replays == 2
    assert results[-1][0].numpy().tolist() == [1, 1]


def test_arguments_of_every_kind():
    @gg.replay
    def step(batch, *, scale, names):
        return {"sum": batch["x"] * scale + batch["y"], "names": names, "rest": [gg.sum(batch["y"]), len(names)]}

    for i in range(CALLS):
        x, y = f32(3, seed=i), np.arange(3, dtype="float32") + i  # a tensor and an array
        out = step({"x": x, "y": y}, scale=2.0, names=("a", None))
        assert np.array_equal(out["sum"].numpy(), x.numpy() * 2 + y)
        assert out["names"] == ("a", None)
        assert (float(out["rest"][0]), out["rest"][1]) == (y.sum(), 2)
    assert step.replays == CALLS - 3


def test_leaves_among_the_arguments_get_gradients():
    @gg.replay
    def step(x):
        (x * x).sum().backward()

    for i in range(CALLS):
        x = f32(3, seed=i).requires_grad_()
        step(x)
        assert np.array_equal(x.grad.numpy(), 2 * x.numpy())
    assert step.replays == CALLS - 3


def test_methods_are_replayed_per_instance():
    class Counter:
        def __init__(self, k):
            self.k, self.total = k, gg.zeros(())

        @gg.replay
        def add(self, x):
            with gg.no_grad():
                self.total[...] = self.total + self.k * x.sum()
            return self.total * 1

    a, b = Counter(1.0), Counter(2.0)
    for i in range(CALLS):
        x = gg.ones(2)
        assert float(a.add(x)) == 2 * (i + 1)
        assert float(b.add(x)) == 4 * (i + 1)
    assert a.add.replays == b.add.replays == CALLS - 3


def test_inside_a_transformation_the_step_is_run_as_it_is():
    step = gg.replay(lambda x: gg.sum(x * x))
    for i in range(CALLS):
        x = f32(3, seed=i)
        assert np.array_equal(gg.jvp(step, (x,), (x,))[1].numpy(), gg.jvp(step.f, (x,), (x,))[1].numpy())
    outer = gg.replay(lambda x: step(x) + 1)
    for i in range(CALLS):
        x = f32(3, seed=i)
        assert float(outer(x)) == np.float32((x.numpy() * x.numpy()).sum() + np.float32(1))
    assert outer.replays == CALLS - 3


def test_values_of_a_transformation_around_the_step_are_no_captures():
    step = gg.replay(lambda x: x * outer[0])
    outer = [gg.ones(3)]

    def f(w):
        outer[0] = w
        return step(gg.ones(3))

    assert gg.jvp(f, (gg.ones(3),), (gg.ones(3),))[1].numpy().tolist() == [1, 1, 1]
    with pytest.raises(ReplayError, match="of a jvp or vmap around it"):
        gg.jvp(f, (gg.ones(3),), (gg.ones(3),))


def test_a_bounded_number_of_programs_is_kept(monkeypatch):
    assert LIMIT < MOST <= 100
    monkeypatch.setattr(recorded, "MOST", 4)
    step = gg.replay(lambda x: x + 1, verify=False)
    for n in range(9):
        step(gg.ones(n + 1))
    assert [r.key[1][0] for r in step.records] == [(n,) for n in (6, 7, 8, 9)]


# --- new programs where something changed -----------------------------------------------------------------------


def counted(f):
    """The step, and what it gives for a few calls."""
    step = gg.replay(f)

    def call(x=None, n=4, **more):
        x = gg.ones(3) if x is None else x
        return [step(x, **more).numpy().sum() for _ in range(n)][-1]

    return step, call


def test_another_shape_dtype_layout_or_number_is_another_program():
    step, call = counted(lambda x, k=1: x * k)
    assert call() == 3
    for x in (gg.ones(4), gg.ones(3, dtype=gg.float64), gg.ones((6, 2))[::2, 0]):
        before = len(step.records)
        assert call(x) == x.size
        assert len(step.records) == before + 1
    for k in (2, 2.5, True):
        assert call(k=k) == 3 * k
    count = len(step.records)
    assert [call(k=k) for k in (2, 2.5)] == [6, 7.5]  # programs are kept
    assert call() == 3
    assert len(step.records) == count


def test_grad_mode_and_training_mode():
    p = gg.ones(3).requires_grad_()
    layer = nn.Dropout(0.5)
    step, call = counted(lambda x: gg.sum(layer(x) * p).detach() + float(gg.is_grad_enabled()))
    layer.eval()
    assert call() == 4
    with gg.no_grad():
        assert call() == 3
    layer.train()
    values = {call(n=1) for _ in range(12)}
    assert len(values) > 2
    layer.eval()
    assert call() == 4
    assert len(step.records) == 3


scale = 2.0


def test_python_values_that_changed_are_seen(monkeypatch):
    """A global, a closure's variable, attributes, items, a list that grew, a default: each gives a new program."""
    config = types.SimpleNamespace(rate=1.0, deep=types.SimpleNamespace(k=1))
    sizes, table, power, activation = [4], {"k": 1.0}, 2, types.SimpleNamespace(f=gg.abs)

    class Scaled(nn.Module):
        factor = 1.0

        def __init__(self):
            self.layers = [types.SimpleNamespace(gain=1.0) for _ in range(2)]

        def forward(self, x):
            for layer in self.layers:
                x = x * layer.gain
            return x * self.factor

    model = Scaled()

    def f(x):
        y = model(x) * scale * config.rate * config.deep.k * len(sizes) * table["k"] + sum(sizes)
        return activation.f(y**power)

    step, call = counted(f)
    globals_ = globals()

    def change_power():
        nonlocal power
        power = 1

    monkeypatch.setitem(globals_, "scale", 2.0)
    changes = [
        lambda: globals_.update(scale=3.0), lambda: setattr(config, "rate", 0.5), lambda: setattr(config.deep, "k", 4),
        lambda: sizes.append(7), lambda: table.update(k=0.25), change_power, lambda: setattr(model, "factor", -2.0),
        lambda: setattr(model.layers[1], "gain", 3.0), lambda: setattr(activation, "f", gg.negative),
        lambda: model.layers.pop(),
    ]  # fmt: skip
    x = gg.ones(3)
    assert call() == float(f(x).sum())
    for i, change in enumerate(changes[: LIMIT - 1]):
        change()
        assert call() == float(f(x).sum()), i
        assert len(step.records) == i + 2
    step.records.clear()
    for change in changes[LIMIT - 1 :]:
        change()
        assert call() == float(f(x).sum())
    names = {frozen.name: frozen for frozen in step.frozen}
    assert {"scale", "config.rate", "config.deep.k", "sizes", "table['k']", "power", "self.factor"} <= set(names)
    assert names["scale"].value == 3.0
    assert re.search(r"scale = 3.0  \(.*test_replay.py:\d+\)", str(names["scale"]))


def test_numbers_read_from_a_numpy_array_are_seen():
    """An array that the step computes with is read anew; one of which it reads single numbers is compared."""
    rates = np.array([1.0, 2.0])
    step, call = counted(lambda x: x * rates[1])
    assert call() == 6
    rates[1] = 5.0
    assert call() == 15
    assert len(step.records) == 2
    table = np.ones(3, "float32")
    step, call = counted(lambda x: x * table)
    assert call() == 3
    table[:] = 2
    assert call() == 6
    assert len(step.records) == 1


def test_replaced_tensors_are_seen():
    model = nn.Linear(3, 2)
    step, call = counted(lambda x: model(x).detach())
    call()
    model.weight.data = model.weight.data * 2  # another array
    assert call() == float(model(gg.ones(3)).sum())
    model.bias = nn.Parameter(gg.ones(2))  # another tensor
    assert call() == float(model(gg.ones(3)).sum())
    model.weight[...] = 1.0 if model.weight.requires_grad_(False) is None else 0.0  # in place, and frozen
    assert call() == 2
    assert len(step.records) == 4


def test_a_seed_starts_another_sequence():
    step = gg.replay(lambda x: F.dropout(x, 0.5))
    x = gg.ones(16)
    gg.random.seed(1)
    first = [step(x).numpy().tolist() for _ in range(4)]
    gg.random.seed(2)
    second = [step(x).numpy().tolist() for _ in range(4)]
    gg.random.seed(1)
    assert [step(x).numpy().tolist() for _ in range(4)] == first != second


# --- what a replay would get wrong is an error, with the line -----------------------------------------------------


counter = 0


def increments(x):
    global counter
    counter += 1
    return x * counter


def appends(history):
    def step(x):
        history.append(x.sum())  # the line
        return x

    return step


def closure():
    n = 0

    def step(x):
        nonlocal n
        n += 1  # the line
        return x * n

    return step


class Remembers:
    def __call__(self, x):
        return self.step(x)

    def step(self, x):
        self.last = x.sum()  # the line
        return x


@pytest.mark.parametrize(
    "step, name", [(increments, "counter"), (appends([]), "history"), (closure(), "n"), (Remembers(), "self.last")]
)
def test_python_values_that_the_step_changes_itself(step, name):
    """The class of scripts for which other engines' replays went stale in silence: counters, histories, caches."""
    step = gg.replay(step)
    step(gg.ones(3))
    with pytest.raises(ReplayError, match=rf"the step itself changes {name},[\s\S]*test_replay.py:\d+"):
        step(gg.ones(3))


def test_a_function_made_by_another_step_of_the_same_text_is_not_this_one():
    """Its closure holds something else, which is no change."""
    kept = []

    def make(k):
        def step(x):
            inner = lambda v: (v * k).sum()
            if k == 2:
                kept.append(inner)
            return gg.grad(inner)(x)

        return step

    make(2)(gg.ones(3))
    step = gg.replay(make(3))
    for _ in range(4):
        assert step(gg.ones(3)).tolist() == [3.0] * 3


def test_a_list_that_grows_between_calls_is_never_stale():
    """A shape taken from a list: traced anew at every call, until that is refused by name."""
    seen = [1]
    step = gg.replay(lambda x: x.sum() + gg.zeros(len(seen)))
    for i in range(LIMIT + 1):
        assert step(gg.ones(3)).shape == (i + 1,)
        seen.append(1)
    with pytest.raises(ReplayError, match=r"seen changed, which the step read at .*test_replay.py:\d+"):
        step(gg.ones(3))


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x if x.sum() > 3 else -x, lambda x: x * float(x.sum()), lambda x: x * x.sum().item(),
        lambda x: x + x.numpy(), lambda x: x + np.asarray(x.detach()), lambda x: x[gg.nonzero(x)[0]],
        lambda x: x[int(gg.argmax(x))],
    ],
)  # fmt: skip
def test_host_reads(step):
    step = gg.replay(step)
    x = gg.asarray([1.0, 2.0, 3.0])
    step(x)
    with pytest.raises(ReplayError, match=r"reads a value on the host[\s\S]*gg.where[\s\S]*test_replay.py:\d+"):
        step(x)
    assert type(x.data) is np.ndarray
    assert x.numpy().tolist() == [1, 2, 3]


def test_numpy_arrays_made_in_the_step():
    base = np.ones(3)
    for make in (lambda: base + 1, lambda: gg.asarray(np.sqrt(base)), lambda: gg.tensor(base * 2).sum()):
        step = gg.replay(lambda x, make=make: x * make())
        step(gg.ones(3, dtype=gg.float64))
        with pytest.raises(ReplayError, match=r"makes a NumPy array float64\[3\][\s\S]*test_replay.py:\d+"):
            step(gg.ones(3, dtype=gg.float64))


@pytest.mark.parametrize(
    "draw", [random.random, lambda: random.randint(1, 5), np.random.rand], ids=["random", "randint", "numpy"]
)
def test_random_numbers_of_the_shared_generators(draw):
    step = gg.replay(lambda x: x * draw())
    step(gg.ones(3))
    with pytest.raises(ReplayError, match=r"draws from Python's or NumPy's own generator[\s\S]*test_replay.py:\d+"):
        step(gg.ones(3))


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState, random.Random])
def test_random_numbers_of_another_generator(make):
    rng = make(3)
    step = gg.replay(lambda x: x * (rng.gauss(0, 1) if isinstance(rng, random.Random) else rng.normal()))
    step(gg.ones(3))
    with pytest.raises(ReplayError, match=r"draws from rng,[\s\S]*test_replay.py:\d+"):
        step(gg.ones(3))


def test_masks_select_a_number_of_elements_that_no_replay_can_change():
    step = gg.replay(lambda x: gg.sum(x[x > 0]))
    step(f32(5))
    with pytest.raises(ReplayError, match=r"selects by a mask[\s\S]*gg.where[\s\S]*test_replay.py:\d+"):
        step(f32(5))
    step = gg.replay(lambda x, i: x.at[x > 0].set(0.0) + gg.zeros(5).at[i].add(x))
    for k in range(CALLS):
        x, i = f32(5, seed=k), labels(5, 5, seed=k)
        want = np.where(x.numpy() > 0, 0, x.numpy())
        np.add.at(want, i.numpy(), x.numpy())
        np.testing.assert_allclose(step(x, i).numpy(), want, rtol=1e-6)
    assert step.replays == CALLS - 3


def test_the_proof_finds_python_numbers_that_change():
    numbers = iter(range(100))  # nothing shows that it moves
    step = gg.replay(lambda x: gg.exp(x * next(numbers)))
    for _ in range(2):
        step(gg.ones(3))
    with pytest.raises(ReplayError, match=r"traced as\s+%\d+ = multiply\(x, 1\).*test_replay.py:\d+\s+and is now"):
        step(gg.ones(3))


def test_the_proof_finds_other_operations():
    numbers = iter([0, 0, 1, 1])
    step = gg.replay(lambda x: gg.exp(x) if next(numbers) else gg.sin(x) + 1)
    for _ in range(2):
        step(gg.ones(3))
    with pytest.raises(ReplayError, match=r"traced as\s+%1 = sin\(x\)[\s\S]*and is now\s+%1 = exp\(x\)"):
        step(gg.ones(3))


def test_the_proof_can_be_waived():
    numbers = iter(range(1, 100))
    step = gg.replay(verify=False)(lambda x: x * next(numbers))
    assert [float(step(gg.ones(3))[0]) for _ in range(4)] == [1, 2, 2, 2]


def test_graphs_do_not_cross_the_border():
    p = gg.ones(3).requires_grad_()
    step = gg.replay(lambda x: gg.sum(p * x))
    step(gg.ones(3)).backward()
    with pytest.raises(ReplayError, match="a result still has its graph"):
        step(gg.ones(3))
    step = gg.replay(lambda x: gg.sum(x).detach())
    step(p * 2)
    with pytest.raises(ReplayError, match="belongs to a graph"):
        step(p * 2)


def test_after_an_error_everything_is_as_before():
    model = nn.Linear(3, 2)

    @gg.replay
    def step(x):
        model(x)
        raise KeyError("mine")

    with pytest.raises(KeyError):
        step(gg.ones(3))
    with pytest.raises(KeyError):
        step(gg.ones(3))
    assert type(model.weight.data) is np.ndarray
    gg.sum(model(gg.ones(3))).backward()
    assert type(model.weight.grad.data) is np.ndarray
    with pytest.raises(GraphError):
        gg.ones(3).backward()


def test_other_threads_compute_while_a_step_is_traced():
    p, results, go, done = gg.ones(1000).requires_grad_(), [], threading.Event(), threading.Event()

    def other():
        go.wait(60)
        for _ in range(50):
            y = gg.sum(p * p + gg.ones(1000))
            results.append(float(y))
        done.set()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()

    def f(x):
        y = gg.sum(p * x)
        if step.calls == 2:
            go.set()
            done.wait(60)
        return y.detach()

    step = gg.replay(f)
    x = gg.ones(1000)
    for _ in range(5):
        assert float(step(x)) == 1000
    thread.join()
    assert set(results) == {2000.0}
    assert [c.op for c in step.program.calls] == ["multiply", "sum", "alias"][: len(step.program.calls)]


# --- the whole table ------------------------------------------------------------------------------------------


def given(args):
    """New tensors of a sample's arrays; numbers and None as they are."""
    return [gg.Tensor(a.copy()) if isinstance(a, np.ndarray) else a for a in args]


def outputs_and_gradients(name, xs, attrs):
    """What an op gives, and the gradients of its sum."""
    xs = [x.detach().requires_grad_() if isinstance(x, gg.Tensor) and x.dtype.kind == "f" else x for x in xs]
    out = TABLE[name].call(*xs, **attrs)
    outs = [o for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, gg.Tensor)]
    live = [o for o in outs if not o.is_leaf]
    inputs = [x for x in xs if isinstance(x, gg.Tensor) and x.requires_grad]
    grads = gg.gradients(live, inputs, [gg.ones_like(o) for o in live]) if live else ()
    return [*(o.detach() for o in outs), *(g for g in grads if g is not None)]


@pytest.mark.parametrize("part", range(8))
def test_every_op_and_its_gradient(part):
    """All samples of the table but masks, which no replay can follow, and what has no derivative."""
    cases = []
    for name, samples in sorted(collect().items()):
        for sample in samples if TABLE[name].kind != "update" else ():
            args = [np.asarray(a) if hasattr(a, "dtype") or isinstance(a, list) else a for a in sample.args]
            masked = name in ("gather", "put", "positions") and any(np.asarray(a).dtype.kind == "b" for a in args)
            try:
                with np.errstate(all="ignore"):
                    want = outputs_and_gradients(name, given(args), sample.attrs)
            except GraphError:
                continue
            if not masked:
                cases.append((name, args, sample.attrs, [t.numpy().tobytes() for t in want]))
    assert len(cases) > 300
    cases = cases[part::8]
    step = gg.replay(lambda rows: [outputs_and_gradients(c[0], xs, c[2]) for c, xs in zip(cases, rows)])
    with np.errstate(all="ignore"):
        for _ in range(4):
            for case, got in zip(cases, step([given(c[1]) for c in cases])):
                assert [t.numpy().tobytes() for t in got] == case[3], case[0]
    assert step.replays == 1


@pytest.mark.skipif(not compiler.enabled(), reason="no C++ compiler")
def test_compiled_results_leave_the_program_as_memory_of_their_own():
    """Loss and gradient in one routine, of which the gradient is a result and the rest is planned memory."""
    rng = np.random.default_rng(0)
    x = gg.tensor(rng.normal(size=(64, 100)).astype("float32"), requires_grad=True)
    labels = gg.tensor(rng.integers(0, 100, 64))

    def step():
        loss = F.cross_entropy(x, labels)
        return [loss.detach(), *gg.gradients(loss, [x])]

    replayed, want = gg.replay(step, compiled=True), step()
    seen = [replayed() for _ in range(5)]
    for loss, grad in seen:
        np.testing.assert_allclose(loss.numpy(), want[0].numpy(), rtol=1e-6)
        np.testing.assert_allclose(grad.numpy(), want[1].numpy(), rtol=1e-5, atol=1e-9)
    assert len({id(grad.data) for _, grad in seen}) == 5


# --- strict=False: what cannot be replayed goes on eagerly, with the same numbers ---------------------------------


def counts():
    calls = [0]

    def step(x, w):
        calls[0] += 1
        return w.sum() * calls[0]

    return step


def draws():
    rng = np.random.default_rng(5)
    return lambda x, w: (w * x).sum() * rng.normal()


def moves():
    numbers = iter(range(100))  # nothing shows that it moves; the proof does
    return lambda x, w: (w * x).sum() * next(numbers)


def rescales():
    scales = [0.5]

    def step(x, w):  # another number at every call: traced anew until that is too often
        return (w * x).sum() * scales[-1]

    return lambda x, w: (scales.append(scales[-1] / 2), step(x, w))[1]


@pytest.mark.parametrize(
    "make",
    [
        counts, draws, moves, rescales, lambda: lambda x, w: (w * x).sum() * (2.0 if x.sum() > 4 else 3.0),
        lambda: lambda x, w: (w * x)[x > 0.1].sum() + x.numpy().sum(),
        lambda: lambda x, w: (w * np.sqrt(np.ones(6))).sum(),
    ],
    ids=["counter", "generator", "iterator", "number", "branch", "mask", "numpy"],
)  # fmt: skip
def test_a_step_that_cannot_be_replayed_goes_on_eagerly(make):
    def run(wrap):
        w = f32(6).requires_grad_()
        opt = optim.Adam([w], lr=0.1)
        norm = nn.BatchNorm1d(6)  # whose averages would show a step made twice
        loss = make()

        def step(x):
            opt.zero_grad()
            y = loss(norm(x)[0], w * gg.random.uniform((6,)))
            y.backward()
            opt.step()
            return y.detach()

        gg.random.seed(4)
        step, seen = wrap(step), []
        for k in range(LIMIT + 6):
            y = step(f32(5, 6, seed=k))
            seen.append([t.numpy().tobytes() for t in (y, w, w.grad, norm.running_mean, norm.running_var)])
        return seen, step

    want, _ = run(lambda f: f)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got, step = run(gg.replay(strict=False))
    assert got == want
    assert step.refused
    (warning,) = caught
    assert re.search(r"\[replay\] the step goes on eagerly: .*test_replay.py:\d+", str(warning.message))


def test_a_graph_that_a_step_leaves_behind_can_still_be_walked():
    def run(wrap):
        w = f32(6).requires_grad_()
        step, seen = wrap(lambda x: (gg.tanh(w) * x).sum()), []
        for k in range(4):
            w.zero_grad()
            step(f32(6, seed=k)).backward()
            assert type(w.grad.data) is np.ndarray
            seen.append(w.grad.numpy().tolist())
        return seen

    with pytest.warns(gg.errors.GpugradWarning, match="still has its graph"):
        assert run(gg.replay(strict=False)) == run(lambda f: f)


@pytest.mark.skipif(not compiler.enabled(), reason="no C++ compiler")
def test_compiled_code_that_differs_is_not_used(monkeypatch):
    monkeypatch.setattr(proof, "judge", lambda *_: (1, 0))
    monkeypatch.setattr(execute.Runner, "same_bits", lambda *_: False)
    x = f32(1000)
    step = gg.replay(lambda x: gg.exp(x) * 2 + 1, compiled=True, strict=False)
    with pytest.warns(gg.errors.GpugradWarning, match="goes on eagerly: the compiled code of"):
        results = [step(x).numpy() for _ in range(5)]
    assert all(np.array_equal(r, (gg.exp(x) * 2 + 1).numpy()) for r in results)
    strict = gg.replay(lambda x: gg.exp(x) * 2 + 1, compiled=True)
    strict(x)
    strict(x)
    with pytest.raises(ReplayError, match="differs from its ops"):
        strict(x)


@pytest.mark.parametrize("name", [*losses.TABLE, "cross_entropy"])
def test_every_loss_is_replayed_with_other_targets(name):
    probabilities = name in ("bce", "cce", "sce", "kl")
    w = gg.tensor(np.random.default_rng(5).standard_normal((6, 4)), requires_grad=True)

    def batch(seed):
        rows = np.random.default_rng(seed).random((8, 4))
        target = rows / rows.sum(1, keepdims=True)
        if name in ("sce", "sce_logits", "categorical_hinge"):
            target = target.argmax(1)
        if name in ("hinge", "squared_hinge"):
            target = np.sign(rows - 0.5)
        return gg.asarray(np.random.default_rng(seed + 1).standard_normal((8, 6))), gg.asarray(target)

    def step(x, t):
        w.grad = None
        z = x @ w
        p = gg.softmax(z) if probabilities else abs(z) if name == "msle" else z
        loss = F.cross_entropy(p, t) if name == "cross_entropy" else losses.TABLE[name](p, t)
        loss.backward()
        return loss.detach()

    replayed = gg.replay(step)
    for seed in range(5):
        got, grad = replayed(*batch(seed)), w.grad.numpy().copy()
        np.testing.assert_array_equal(got.numpy(), step(*batch(seed)).numpy())
        np.testing.assert_array_equal(grad, w.grad.numpy())
    assert replayed.replays >= 2


@pytest.mark.parametrize("call", [1, 2])
def test_a_target_that_is_no_probability_is_found_while_the_step_is_eager_or_traced(call):
    x, good, bad = (gg.asarray(np.full((3, 4), v)) for v in (0.3, 0.25, 1.5))
    step = gg.replay(lambda x, t: F.cross_entropy(x, t))
    for _ in range(call - 1):
        step(x, good)
    with pytest.raises(DomainError, match="a probability"):
        step(x, bad)


def test_values_that_lie_alike_in_one_place_are_one_array():
    """A long program on small arrays then stays in the processor's cache."""
    step = gg.replay(lambda x: [x := x * 1.5 + 0.5 for _ in range(100)][-1])
    for k in range(4):
        x = f32(10, seed=k)
        np.testing.assert_array_equal(step(x).numpy(), step.f(x).numpy())
    held = step.records[-1].runner.arrays
    assert len(held) > 150
    assert len({id(a) for a in held.values()}) < 20
