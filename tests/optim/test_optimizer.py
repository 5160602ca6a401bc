"""Optimisers as users drive them: groups, state, errors, clipping, averages, convergence."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DomainError, GraphError, ShapeError

NAMES = ["SGD", "Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "Adamax", "Nadam"]
OPTIONS = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adam": {"amsgrad": True},
}


def leaf(values, dtype="float64"):
    return gg.tensor(values, dtype=dtype).requires_grad_()


def give(p, values):
    p.grad = gg.tensor(values, dtype=p.dtype)


def make(name, params, **more):
    return getattr(gg.optim, name)(params, **{**OPTIONS.get(name, {}), **more})


def bowl(params):
    """A quadratic with minimum at 3, condition number 10."""
    w, b = params
    scale = gg.tensor([1.0, 10.0], dtype="float64")
    return (scale * (w - 3.0) * (w - 3.0)).sum() + ((b - 3.0) * (b - 3.0)).sum()


@pytest.mark.parametrize(
    "name, lr, steps",
    [("SGD", 0.02, 300), ("Adagrad", 1.0, 400), ("Adadelta", 20.0, 1500), ("RMSprop", 0.01, 1500), ("Adam", 0.1, 600),
     ("AdamW", 0.1, 600), ("Adamax", 0.1, 600), ("Nadam", 0.1, 600)],
)  # fmt: skip
def test_reaches_the_bottom_of_a_bowl(name, lr, steps):
    params = [leaf([-2.0, 1.0]), leaf(0.5)]
    more = {"weight_decay": 0.0} if name == "AdamW" else {}
    optimizer = getattr(gg.optim, name)(params, lr=lr, **({"momentum": 0.9} if name == "SGD" else {}), **more)
    schedule = gg.optim.Schedule(optimizer, gg.optim.schedules.Cosine(steps))
    for _ in range(steps):
        loss = bowl(params)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert bowl(params).item() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_addresses_never_change(name):
    params = [leaf([-2.0, 1.0]), leaf(0.5)]
    optimizer = make(name, params)

    def addresses():
        group = optimizer.param_groups[0]
        kept = [*params, group.rate, *group.counters.values(), *(t for ts in group.state.values() for t in ts)]
        return [t.data.ctypes.data for t in kept]

    before = addresses()
    for lr in (0.1, 0.2):
        optimizer.lr = lr
        bowl(params).backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert addresses() == before


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_bit_equal(name):
    def train(params, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            bowl(params).backward()
            optimizer.step()

    straight = [leaf([-2.0, 1.0]), leaf(0.5)]
    first = make(name, straight, lr=0.05)
    train(straight, first, 3)
    saved = pickle.loads(pickle.dumps(first.state_dict()))
    halfway = [p.numpy(copy=True) for p in straight]
    train(straight, first, 4)

    resumed = [leaf(v) for v in halfway]
    second = make(name, resumed, lr=0.7)
    second.load_state_dict(saved)
    assert second.lr == 0.05
    train(resumed, second, 4)
    for a, b in zip(straight, resumed):
        assert np.array_equal(a.numpy(), b.numpy())


def test_saved_state_is_a_copy():
    p = leaf([1.0])
    optimizer = gg.optim.Adam([p])
    saved = optimizer.state_dict()
    give(p, [1.0])
    optimizer.step()
    assert saved["groups"][0]["counters"]["step"].tolist() == [0.0]
    assert saved["groups"][0]["state"]["exp_avg"][0].tolist() == [0.0]


def test_state_of_another_optimizer_or_shape_is_refused():
    saved = gg.optim.Adam([leaf([1.0])]).state_dict()
    with pytest.raises(DomainError, match="saved state is of Adam with 1 groups, expected SGD"):
        gg.optim.SGD([leaf([1.0])], lr=0.1).load_state_dict(saved)
    with pytest.raises(ShapeError, match="exp_avg has shapes"):
        gg.optim.Adam([leaf([1.0, 2.0])]).load_state_dict(saved)


def test_groups_have_their_own_options():
    a, b = leaf([1.0]), leaf([1.0])
    optimizer = gg.optim.SGD([{"params": [a]}, {"params": [("b", b)], "lr": 0.5}], lr=0.1)
    give(a, [1.0]), give(b, [1.0])
    optimizer.step()
    assert (a.item(), b.item()) == (0.9, 0.5)
    optimizer.param_groups[1]["lr"] = 0.25
    optimizer.step()
    assert (a.item(), b.item()) == pytest.approx((0.8, 0.25), abs=1e-15)
    c = leaf([1.0])
    optimizer.add_param_group({"params": [c], "weight_decay": 1.0})
    give(c, [0.0])
    optimizer.step()
    assert c.item() == 0.9
    assert "b" in repr(optimizer)


def test_an_option_switched_on_later_gets_its_state():
    p = leaf([1.0])
    optimizer = gg.optim.SGD([p], lr=0.1)
    optimizer.param_groups[0]["momentum"] = 0.5
    for want in (0.9, 0.75):
        give(p, [1.0])
        optimizer.step()
        assert p.item() == pytest.approx(want, abs=1e-15)


def test_no_decay_rule_excludes_biases_and_is_printed():
    w, b = leaf([[1.0]]), leaf([1.0])
    optimizer = gg.optim.SGD([("w", w), ("b", b)], lr=0.1, weight_decay=0.5, no_decay=True)
    give(w, [[0.0]]), give(b, [0.0])
    optimizer.step()
    assert (w.item(), b.item()) == (0.95, 1.0)
    lines = repr(optimizer).splitlines()
    assert "weight_decay=0.5" in lines[1]
    assert lines[1].endswith(": w")
    assert "weight_decay=0.0" in lines[2]
    assert lines[2].endswith(": b")


def test_no_decay_predicate():
    w, v = leaf([[1.0]]), leaf([[1.0]])
    rule = lambda name, p: name.startswith("embedding")
    optimizer = gg.optim.AdamW([("w", w), ("embedding.v", v)], no_decay=rule)
    assert [(g.names, g["weight_decay"]) for g in optimizer.param_groups] == [(["w"], 0.01), (["embedding.v"], 0.0)]


def test_refuses_bad_parameters():
    x = leaf([1.0, 2.0])
    with pytest.raises(DomainError, match="same parameter"):
        gg.optim.SGD([x, x], lr=0.1)
    with pytest.raises(DomainError, match=r"params\[1\] and params\[0\]"):
        gg.optim.SGD([{"params": [x]}, {"params": [x]}], lr=0.1)
    with pytest.raises(GraphError, match="only leaves"):
        gg.optim.SGD([x * 2.0], lr=0.1)
    with pytest.raises(DomainError, match="no parameters"):
        gg.optim.SGD([], lr=0.1)
    with pytest.raises(DomainError, match="iterable of tensors"):
        gg.optim.SGD(x, lr=0.1)
    with pytest.raises(DomainError, match="is a float"):
        gg.optim.SGD([1.0], lr=0.1)


@pytest.mark.parametrize(
    "name, options",
    [("SGD", {"lr": -1.0}), ("SGD", {"lr": float("nan")}), ("SGD", {"momentum": -0.1}), ("SGD", {"nesterov": True}),
     ("Adam", {"betas": (1.0, 0.9)}), ("Adam", {"eps": -1e-8}), ("RMSprop", {"alpha": 1.5}),
     ("Adadelta", {"rho": -1.0}), ("AdamW", {"weight_decay": float("inf")})],
)  # fmt: skip
def test_refuses_options_out_of_range(name, options):
    with pytest.raises(DomainError, match=rf"\[{name}\]"):
        getattr(gg.optim, name)([leaf([1.0])], **options)


def test_refuses_unknown_group_options():
    with pytest.raises(DomainError, match="unknown option 'momentun'"):
        gg.optim.SGD([{"params": [leaf([1.0])], "momentun": 0.9}], lr=0.1)


def test_a_gradient_of_the_wrong_shape_is_named():
    p = leaf([1.0, 2.0])
    optimizer = gg.optim.SGD([("layer.weight", p)], lr=0.1)
    p.grad = gg.tensor([1.0], dtype="float64")
    with pytest.raises(ShapeError, match=r"layer\.weight is float64\[2\] but its gradient is float64\[1\]"):
        optimizer.step()


def test_unused_parameters_are_named_with_the_reason():
    used, idle, dead = leaf([1.0]), leaf([2.0]), leaf([3.0])
    frozen = gg.tensor([4.0], dtype="float64")
    optimizer = gg.optim.SGD([("used", used), ("idle", idle), ("dead", dead), ("frozen", frozen)], lr=0.1)
    (used * used + dead * 0.0).sum().backward()
    want = {
        "idle": "no gradient: the loss does not depend on it",
        "dead": "its gradient is zero everywhere",
        "frozen": "does not require gradients",
    }
    assert optimizer.unused() == want
    optimizer.step()
    optimizer.zero_grad()
    assert set(optimizer.unused()) == {"idle", "frozen"}
    assert (idle.item(), frozen.item()) == (2.0, 4.0)


def test_zero_grad_forgets_or_clears_in_place():
    p = leaf([1.0])
    optimizer = gg.optim.SGD([p], lr=0.1)
    give(p, [2.0])
    kept = p.grad
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is kept
    assert kept.tolist() == [0.0]
    optimizer.zero_grad()
    assert p.grad is None


def test_accumulated_micro_batches_equal_one_batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3))
    results = []
    for parts in (1, 4):
        w = leaf([0.1, -0.2, 0.3])
        optimizer = gg.optim.SGD([w], lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            for part in np.split(x, parts):
                e = (gg.tensor(part, dtype="float64") * w).sum(axis=1) - 1.0
                ((e * e).sum() * (1 / len(x))).backward(accumulate=True)
            optimizer.step()
        results.append(w.numpy(copy=True))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-14)


def test_clip_grad_norm():
    a, b, c = leaf([3.0, 0.0]), leaf([[4.0]]), leaf([9.0])
    give(a, [3.0, 0.0]), give(b, [[4.0]])
    norm = gg.optim.clip_grad_norm([a, b, c], 10.0)
    assert isinstance(norm, gg.Tensor)
    assert (norm.shape, norm.item(), a.grad.tolist()) == ((), 5.0, [3.0, 0.0])
    grads = a.grad.data, b.grad.data
    assert gg.optim.clip_grad_norm([("a", a), ("b", b)], 1.0).item() == 5.0
    assert a.grad.data is grads[0]
    np.testing.assert_allclose(a.grad.numpy(), [0.6, 0.0], rtol=1e-15)
    np.testing.assert_allclose(b.grad.numpy(), [[0.8]], rtol=1e-15)
    assert gg.optim.clip_grad_norm(b, 0.4, ord=float("inf")).item() == pytest.approx(0.8)
    np.testing.assert_allclose(b.grad.numpy(), [[0.4]], rtol=1e-15)
    assert gg.optim.clip_grad_norm([c], 1.0).item() == 0.0
    give(c, [0.0])
    assert gg.optim.clip_grad_norm([c], 1.0).item() == 0.0
    assert c.grad.tolist() == [0.0]
    with pytest.raises(DomainError):
        gg.optim.clip_grad_norm([c], 0.0)


def test_clip_grad_norm_keeps_float32():
    p = leaf([1.0, 1.0], "float32")
    give(p, [30.0, 40.0])
    norm = gg.optim.clip_grad_norm([p], 5.0)
    assert norm.dtype == p.grad.dtype == np.float32
    np.testing.assert_allclose(p.grad.numpy(), [3.0, 4.0], rtol=1e-6)


def test_clip_grad_value():
    a, b = leaf([1.0, 2.0]), leaf([3.0])
    give(a, [-3.0, 0.25])
    gg.optim.clip_grad_value([a, b], 0.5)
    assert a.grad.tolist() == [-0.5, 0.25]
    with pytest.raises(DomainError):
        gg.optim.clip_grad_value([a], -1.0)


def test_exponential_average_by_hand():
    p = leaf([1.0, 2.0])
    ema = gg.optim.ExponentialMovingAverage([p], decay=0.8)
    want = np.array([1.0, 2.0])
    for k in range(1, 4):
        with gg.no_grad():
            p[...] = gg.tensor([k * 1.5, -k], dtype="float64")
        ema.update()
        want = 0.8 * want + 0.2 * np.array([k * 1.5, -k])
    np.testing.assert_allclose(ema.averages[0].numpy(), want, rtol=1e-14, atol=1e-14)

    address = p.data.ctypes.data
    with ema.swap():
        np.testing.assert_allclose(p.numpy(), want, rtol=1e-14, atol=1e-14)
        with pytest.raises(GraphError, match="outside swap"):
            ema.update()
    assert p.tolist() == [4.5, -3.0]
    assert p.data.ctypes.data == address
    assert p.requires_grad

    other = gg.optim.ExponentialMovingAverage([leaf([0.0, 0.0])], decay=0.1)
    other.load_state_dict(pickle.loads(pickle.dumps(ema.state_dict())))
    assert np.array_equal(other.averages[0].numpy(), ema.averages[0].numpy())
    assert (other.decay, other.count.tolist()) == (0.8, [3.0])
    other.copy_to_params()
    np.testing.assert_allclose(other.params[0].numpy(), want, rtol=1e-14, atol=1e-14)


def test_plain_average_is_the_mean_of_all_updates():
    p = leaf([0.0])
    mean = gg.optim.ExponentialMovingAverage([p], decay=None)
    for v in (2.0, 4.0, 9.0):
        with gg.no_grad():
            p[...] = v
        mean.update()
    assert mean.averages[0].item() == pytest.approx(5.0, abs=1e-14)


def test_swap_restores_after_an_error_and_keeps_half_precision_averages():
    p = leaf([1.0], "float16")
    ema = gg.optim.ExponentialMovingAverage([p], decay=0.999)
    with gg.no_grad():
        p[...] = 2.0
    ema.update()
    assert ema.averages[0].dtype == np.float32
    with pytest.raises(RuntimeError), ema.swap():
        raise RuntimeError
    assert p.item() == 2.0
    assert ema.averages[0].item() == pytest.approx(1.001, rel=1e-6)


def test_nothing_reads_the_device(monkeypatch):
    """A step, a rate change, clipping and averaging never fetch a number: what a graph capture forbids."""
    p = leaf([1.0, 2.0])
    optimizer = gg.optim.Adam([p])
    ema = gg.optim.ExponentialMovingAverage([p])
    schedule = gg.optim.Schedule(optimizer, gg.optim.schedules.Cosine(10))

    def forbidden(*_):
        raise AssertionError("read by the host")

    for name in ("item", "tolist", "numpy", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(gg.Tensor, name, forbidden, raising=False)
    (p * p).sum().backward()
    gg.optim.clip_grad_norm([p], 1.0)
    gg.optim.clip_grad_value([p], 0.5)
    optimizer.step()
    schedule.step()
    ema.update()
    with ema.swap():
        pass
    optimizer.zero_grad()
