"""Schedules against values worked out by hand, and how they reach the optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DomainError
from gpugrad.optim import schedules as s


def values(shape, n):
    return [shape(k) for k in range(n)]


@pytest.mark.parametrize(
    "shape, want",
    [
        (s.Constant(), [1, 1, 1]),
        (s.Constant(0.5), [0.5, 0.5]),
        (s.Step(2, 0.5), [1, 1, 0.5, 0.5, 0.25]),
        (s.MultiStep((1, 3), 0.1), [1, 0.1, 0.1, 0.01, 0.01]),
        (s.Exponential(0.5), [1, 0.5, 0.25, 0.125]),
        (s.Polynomial(4), [1, 0.75, 0.5, 0.25, 0, 0, 0]),
        (s.Polynomial(2, power=2, final=0.2), [1, 0.4, 0.2, 0.2]),
        (s.Cosine(4), [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0, 0, 0]),
        (s.Cosine(2, final=0.5), [1, 0.75, 0.5, 0.5]),
        (s.Cosine(2, restarts=True), [1, 0.5, 1, 0.5, 1]),
        (s.Cosine(2, restarts=True, growth=2), [1, 0.5, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 1]),
        (s.Warmup(4), [0, 0.25, 0.5, 0.75, 1, 1]),
        (s.Warmup(2, start=0.5), [0.5, 0.75, 1, 1]),
        (s.InverseSqrt(4), [0.25, 0.5, 0.75, 1, math.sqrt(0.8), math.sqrt(4 / 6)]),
        (s.TimeDecay(0.5), [1, 2 / 3, 0.5, 0.4]),
        (s.TimeDecay(1.0, power=0.5), [1, 1 / math.sqrt(2), 1 / math.sqrt(3)]),
        (s.Chain((2, s.Warmup(2)), (1, s.Constant(0.7)), s.Polynomial(2)), [0, 0.5, 0.7, 1, 0.5, 0, 0]),
        (s.OneCycle(10, up=0.5, start_div=4, final_div=10),
         [0.25, 0.25 + 0.75 * (2 - math.sqrt(2)) / 4, 0.625, 0.25 + 0.75 * (2 + math.sqrt(2)) / 4, 1]),
    ],
    ids=str,
)  # fmt: skip
def test_values(shape, want):
    np.testing.assert_allclose(values(shape, len(want)), want, rtol=1e-12, atol=1e-15)


def test_one_cycle_ends_far_below_its_start():
    shape = s.OneCycle(100)
    assert shape(0) == pytest.approx(1 / 25)
    assert shape(29) == pytest.approx(1)
    assert shape(99) == pytest.approx(1 / 25e4)
    assert shape(1000) == pytest.approx(1 / 25e4)
    assert all(a > b for a, b in zip(values(shape, 100)[29:], values(shape, 100)[30:]))


@pytest.mark.parametrize(
    "make",
    [lambda: s.Step(0), lambda: s.Cosine(0), lambda: s.Warmup(0), lambda: s.OneCycle(10, up=1.0), lambda: s.OneCycle(2),
     lambda: s.TimeDecay(0.0), lambda: s.Polynomial(5, power=0), lambda: s.Cosine(5, growth=0), s.Chain,
     lambda: s.InverseSqrt(0), lambda: s.Chain((0, s.Constant()), s.Constant()), lambda: s.Chain((5, s.Constant()))],
)  # fmt: skip
def test_refuses_parameters_out_of_range(make):
    with pytest.raises(DomainError):
        make()


def optimizer(*rates):
    groups = [{"params": [gg.tensor([1.0], dtype="float64").requires_grad_()], "lr": r} for r in rates]
    return gg.optim.SGD(groups)


def test_a_schedule_writes_the_device_scalar_of_every_group():
    opt = optimizer(0.5, 0.25)
    rates = [g.rate for g in opt.param_groups]
    addresses = [r.data.ctypes.data for r in rates]
    schedule = gg.optim.Schedule(opt, s.Exponential(0.5))
    for k in range(3):
        assert [r.item() for r in rates] == [0.5 * 0.5**k, 0.25 * 0.5**k]
        assert schedule(k) == opt.lr == opt.param_groups[0]["lr"] == 0.5 * 0.5**k
        schedule.step()
    assert [r.data.ctypes.data for r in rates] == addresses
    assert "Exponential(gamma=0.5), step=3" in repr(schedule)


def test_the_scheduled_rate_is_the_one_that_steps():
    opt = optimizer(1.0)
    p = opt.param_groups[0]["params"][0]
    schedule = gg.optim.Schedule(opt, s.Chain((2, s.Warmup(2)), s.Constant(0.125)))
    seen = []
    for _ in range(4):
        before = p.item()
        p.grad = gg.tensor([1.0], dtype="float64")
        opt.step()
        schedule.step()
        seen.append(before - p.item())
    assert seen == [0.0, 0.5, 0.125, 0.125]


def test_schedule_state_round_trip():
    opt = optimizer(1.0)
    schedule = gg.optim.Schedule(opt, s.Cosine(10))
    for _ in range(4):
        schedule.step()
    other = optimizer(1.0)
    resumed = gg.optim.Schedule(other, s.Cosine(10))
    resumed.load_state_dict(schedule.state_dict())
    assert other.lr == opt.lr
    schedule.step(), resumed.step()
    assert other.lr == opt.lr == pytest.approx(0.5)


def test_reduce_on_plateau():
    opt = optimizer(1.0)
    plateau = gg.optim.ReduceOnPlateau(opt, factor=0.5, patience=1, cooldown=1, min_lr=0.2)
    rates = []
    for metric in (3.0, 2.0, 2.0, 1.9999, 2.0, 2.0, 2.0, 1.0, 1.0, gg.tensor(1.0), 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        plateau.step(metric)
        rates.append(opt.lr)
    # waits 1 (2.0), 2 (1.9999 is no improvement): halve; one call of rest; waits again ...
    assert rates[:4] == [1.0, 1.0, 1.0, 0.5]
    assert rates[4:7] == [0.5, 0.5, 0.25]
    assert rates[7:10] == [0.25, 0.25, 0.2]
    assert min(rates) == 0.2


def test_reduce_on_plateau_for_a_score_and_its_state():
    opt = optimizer(1.0)
    plateau = gg.optim.ReduceOnPlateau(opt, mode="max", patience=0)
    for metric in (0.5, 0.6, 0.7):
        plateau.step(metric)
    assert opt.lr == 1.0
    other = gg.optim.ReduceOnPlateau(opt, mode="max", patience=0)
    other.load_state_dict(plateau.state_dict())
    other.step(0.65)
    assert opt.lr == pytest.approx(0.1)
    with pytest.raises(DomainError):
        gg.optim.ReduceOnPlateau(opt, mode="best")


@pytest.mark.parametrize(
    "shape, diverges, squares_converge",
    [
        (s.TimeDecay(0.1), True, True),
        (s.TimeDecay(0.1, power=0.75), True, True),
        (s.TimeDecay(0.1, power=0.5), True, False),
        (s.TimeDecay(0.1, power=1.25), False, True),
        (s.InverseSqrt(100), True, False),
        (s.Constant(0.1), True, False),
        (s.Exponential(0.999), False, True),
        (s.Cosine(100), False, True),
        (s.Cosine(100, final=0.1), True, False),
        (s.Chain((100, s.Warmup(100)), s.TimeDecay(1.0)), True, True),
    ],
    ids=str,
)
def test_robbins_monro(shape, diverges, squares_converge):
    assert s.robbins_monro(shape) == (diverges, squares_converge)
