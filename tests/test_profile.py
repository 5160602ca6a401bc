"""The profile: what it counts, that it adds up, and that nothing of it stays behind."""

from __future__ import annotations

import inspect
import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.op import RAW, TABLE
from gpugrad.profile import Profile

HERE = __file__.rpartition("/")[2]


def rows(p: Profile) -> dict[tuple[str, str], object]:
    return {(r.op, r.phase): r for r in p.rows}


def test_calls_bytes_and_products_are_counted():
    x, w = gg.ones((32, 64)), gg.tensor(np.ones((64, 16), "f"), requires_grad=True)
    with gg.profile() as p:
        gg.exp(x @ w).sum().backward()
    found = rows(p)
    product = found["matmul", "forward"]
    assert (product.calls, product.flops) == (2, 2 * 2 * 32 * 64 * 16)  # forward, and the rule for w
    assert product.bytes == 4 * (32 * 64 + 64 * 16 + 32 * 16) * 2
    assert found["exp", "forward"].bytes == 2 * 4 * 32 * 16
    assert found["exp", "backward"].calls == 1
    assert found["matmul", "backward"].bytes == 0  # the products in it count theirs
    assert found["matrix_transpose", "forward"].bytes == 0  # a view


def test_times_add_up_to_the_whole():
    x = gg.tensor(np.full((768, 768), 1e-3, "float32"), requires_grad=True)

    def step() -> None:
        y = x
        for _ in range(4):
            y = gg.sin(y @ x)
        y.sum().backward()

    step()
    for _ in range(8):  # a neighbour may take the processor between two ops
        with gg.profile() as p:
            step()
        assert p.seconds == pytest.approx(p.outside + sum(r.seconds for r in p.rows))
        if p.outside < 0.05 * p.seconds:
            return
    pytest.fail(str(p))


def test_lines_are_the_users():
    with gg.profile(lines=True) as p:
        gg.exp(gg.ones(3))
        line = inspect.currentframe().f_lineno - 1
    (found,) = [r.line for r in p.rows if r.op == "exp"]
    assert f"{HERE}:{line}:" in found


def test_everything_is_as_before_afterwards():
    ops = [(op, dict(op.impls), op.vjps, op.joint) for op in TABLE.values()]
    with pytest.raises(gg.errors.ShapeError), gg.profile() as p:
        gg.exp(gg.ones(3)) @ gg.ones(4)
    assert "exp" in [r.op for r in p.rows]
    for op, impls, vjps, joint in ops:
        assert impls.items() <= op.impls.items()
        assert op.vjps == vjps
        assert op.joint is joint
    assert RAW[np.ndarray].exp is TABLE["exp"].impls[np.ndarray]


def test_other_threads_are_not_measured():
    with gg.profile() as p:
        other = threading.Thread(target=lambda: gg.exp(gg.ones(3)))
        other.start()
        other.join()
    assert not p.rows


def test_results_and_second_order_are_the_same():
    def f(x: gg.Tensor) -> gg.Tensor:
        return (gg.sin(x) * x).sum()

    x = gg.tensor([0.3, 0.7], dtype=gg.float64)
    plain = gg.grad(lambda x: gg.grad(f)(x).sum())(x).numpy()
    with gg.profile() as p:
        watched = gg.grad(lambda x: gg.grad(f)(x).sum())(x).numpy()
    assert (plain == watched).all()
    assert ("sin", "backward") in rows(p)


def test_text_and_data():
    with gg.profile() as p:
        gg.ones((256, 256)) @ gg.ones((256, 256))
    assert p.roofline(p.rows[0]) is None
    p.calibrate()
    (data,) = [r for r in p.json()["rows"] if r["op"] == "matmul"]
    assert data["roofline"] > 0
    text = str(p)
    assert "matmul" in text
    assert "outside the ops" in text
    assert text.endswith("on cpu")
