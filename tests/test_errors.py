"""Golden messages: op, operands, what was expected, and the user's file and line; never a wrong number in silence."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


def leaf(*shape, dtype=gg.float32):
    return gg.ones(shape, dtype=dtype).requires_grad_()


CASES = [
    ("matmul", lambda: leaf(32, 784) @ leaf(748, 10),
     gg.errors.ShapeError,
     r"\[matmul\] \(float32\[32, 784\], float32\[748, 10\]\): the inner dimensions 784 and 748 differ"),
    ("vector", lambda: leaf(2, 3) @ leaf(4), gg.errors.ShapeError, r"the inner dimensions 3 and 4 differ"),
    ("add", lambda: leaf(3) + leaf(4), gg.errors.ShapeError, r"\[add\] \(float32\[3\], float32\[4\]\)"),
    ("reshape", lambda: leaf(2, 3).reshape(4), gg.errors.ShapeError, r"\[reshape\].*2, 3.*4"),
    ("axis", lambda: leaf(2, 3).sum(axis=2), gg.errors.RangeError, r"\[sum\] axis 2 is out of range.*-2 <= axis < 2"),
    ("index", lambda: leaf(3)[5], gg.errors.RangeError, r"index 5.*size 3|5.*out of.*3"),
    ("list", lambda: gg.exp([1.0, 2.0]),
     gg.errors.DTypeError, r"\[exp\] list is not an array; wrap it with gpugrad.tensor"),
    ("string", lambda: gg.tensor("abc"), gg.errors.DTypeError, r"\[tensor\]"),
    ("integer leaf", lambda: gg.tensor([1, 2], requires_grad=True),
     gg.errors.DTypeError, r"only floating-point tensors have gradients, not int64"),
    ("non-scalar backward", lambda: (leaf(3) * 2).backward(),
     gg.errors.GraphError, r"\[backward\].*shape \[3\].*\.sum\(\)"),
    ("constant backward", lambda: gg.tensor(1.0).backward(),
     gg.errors.GraphError, r"does not depend on any tensor that requires gradients"),
    ("truth", lambda: bool(leaf(3)), gg.errors.ShapeError, r"\[bool\].*\.any\(\) or \.all\(\)"),
    ("item", lambda: leaf(3).item(), gg.errors.ShapeError, r"\[item\].*3 elements, expected one"),
    ("leaf assignment", lambda: leaf(3).__setitem__(0, 1.0),
     gg.errors.GraphError, r"leaf that requires gradients.*\.at\[i\]\.set"),
    ("label", lambda: nn.functional.cross_entropy(leaf(2, 3), gg.tensor([0, 7])),
     gg.errors.RangeError, r"row 1.*7|label 7"),
    ("loss shapes", lambda: nn.functional.mse_loss(leaf(8, 1), gg.ones(8)), gg.errors.ShapeError, r"8, 1.*\[8\]"),
    ("layer", lambda: nn.Linear(6, 2)(leaf(3, 5)), gg.errors.ShapeError, r"Linear\(6 -> 2\).*\[3, 5\].*6"),
    ("embedding", lambda: gg.nn.functional.embedding(gg.tensor([0, 9]), leaf(4, 2)), gg.errors.RangeError, r"9"),
    ("empty max", lambda: gg.max(gg.zeros((0,))), gg.errors.GpugradError, r"\[max\]"),
    ("concat", lambda: gg.concat([leaf(2, 3), leaf(2, 4)], axis=0), gg.errors.ShapeError, r"\[concat\].*2, 3.*2, 4"),
    ("einsum", lambda: gg.einsum("ij,jk->ik", leaf(2, 3), leaf(4, 5)), gg.errors.ShapeError, r"\[einsum\]"),
    ("unknown device", lambda: leaf(2).to(device="tpu"), gg.errors.DeviceError, r"unknown device 'tpu'"),
    ("default dtype", lambda: gg.set_default_dtype("int8"), TypeError, r"int8.*float32 or float64"),
    ("negative lr", lambda: gg.optim.SGD([leaf(2)], lr=-1), gg.errors.DomainError, r"\[SGD\] lr is -1"),
    ("conv channels", lambda: nn.functional.conv2d(leaf(1, 3, 8, 8), leaf(4, 2, 3, 3)),
     gg.errors.ShapeError, r"\[conv2d\].*3.*2"),
]  # fmt: skip


@pytest.mark.parametrize("name, call, kind, said", CASES, ids=[c[0] for c in CASES])
def test_message(name, call, kind, said):
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert re.search(said, text, re.S), text
    if isinstance(caught.value, gg.errors.GpugradError):
        line = inspect.getsourcelines(call)[1]
        assert f"{__file__}:{line}" in text, text


def test_a_failing_rule_names_the_forward_line():
    class Bad(gg.Function):
        check = False

        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return gg.ones(5)

    x = leaf(3)
    y = Bad.apply(x)  # here it was used
    with pytest.raises(gg.errors.GpugradError) as caught:
        y.sum().backward()
    assert "Bad" in str(caught.value)
    assert "here it was used" in str(caught.value)


def test_an_overwritten_value_names_both_lines():
    w = gg.tensor([1.0, 2.0], requires_grad=True)
    y = (w * w).sum()  # the value is used here
    with gg.no_grad():
        w[0] = 5.0  # and overwritten here
    with pytest.raises(gg.errors.GraphError) as caught:
        y.backward()
    assert "and overwritten here" in str(caught.value)
    assert "the value is used here" in str(caught.value)


def test_float32_stays_float32():
    x = gg.tensor([1.0], dtype=gg.float32)
    for y in (x * np.float64(2), x + 1, x / 3, x ** np.float64(2), np.float64(2) * x, x * gg.tensor([1, 2])):
        assert y.dtype == gg.float32
