"""Mistakes, and what they are told: the op, the operands, what was expected, and the user's own line."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import errors, nn, optim
from gpugrad.nn import functional as F

x = gg.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)

# (mistake, kind of error, its text; where NumPy's own words follow, only what comes before them)
MISTAKES = [
    (
        lambda: gg.ones((2,3)) + gg.ones((4,)),
        errors.ShapeError,
        "[add] (float32[2, 3], float32[4]):",
    ),
    (
        lambda: gg.ones((2,3)) @ gg.ones((2,3)),
        errors.ShapeError,
        "[matmul] (float32[2, 3], float32[2, 3]): the inner dimensions 3 and 2 differ",
    ),
    (
        lambda: gg.sum(x, axis=2),
        errors.RangeError,
        "[sum] axis 2 is out of range for a 2-d array; expected -2 <= axis < 2",
    ),
    (
        lambda: gg.sum(x, axis=(0,0)),
        errors.ShapeError,
        "[sum] axis (0, 0) names an axis of a 2-d array twice",
    ),
    (
        lambda: gg.reshape(x, (4, 2)),
        errors.ShapeError,
        "[reshape] float64[2, 3] has 6 elements, which do not fill shape [4, 2]",
    ),
    (
        lambda: gg.reshape(x, (-1, -1)),
        errors.ShapeError,
        "[reshape] float64[2, 3] has 6 elements, which do not fill shape [-1, -1]",
    ),
    (
        lambda: gg.transpose(x, (0, 0)),
        errors.ShapeError,
        "[transpose] axis (0, 0) names an axis of a 2-d array twice",
    ),
    (
        lambda: gg.concat([gg.ones((2,3)), gg.ones((3,2))]),
        errors.ShapeError,
        "[concat] (float32[2, 3], float32[3, 2], axis=0):",
    ),
    (
        lambda: gg.stack([gg.ones(2), gg.ones(3)]),
        errors.ShapeError,
        "[stack] (float32[2], float32[3], axis=0):",
    ),
    (
        lambda: gg.squeeze(x, 0),
        errors.ShapeError,
        "[squeeze] float64[2, 3]: axis 0 is not of length 1",
    ),
    (
        lambda: gg.broadcast_to(x, (3, 2)),
        errors.ShapeError,
        "[broadcast_to] (float64[2, 3], shape=(3, 2)):",
    ),
    (
        lambda: gg.tensor([1,2,3], requires_grad=True),
        errors.DTypeError,
        "[requires_grad] only floating-point tensors have gradients, not int64",
    ),
    (
        lambda: x.backward(),
        errors.GraphError,
        "[backward] the output has shape [2, 3], not one element; reduce it with .sum() or .mean(), or pass a "
        "cotangent of that shape",
    ),
    (
        lambda: gg.ones(3).sum().backward(),
        errors.GraphError,
        "[backward] float32[] does not depend on any tensor that requires gradients",
    ),
    (
        lambda: x[5],
        errors.RangeError,
        "[getitem] (float64[2, 3], index=(5,)):",
    ),
    (
        lambda: x[:, [0, 7]],
        errors.RangeError,
        "[gather] index 7 at position [1] is out of range for axis 1 of length 3",
    ),
    (
        lambda: x["a"],
        errors.DTypeError,
        "[getitem] a str cannot index float64[2, 3]",
    ),
    (
        lambda: gg.max(gg.zeros((0,)) ),
        errors.ShapeError,
        "[max] (float32[0], axis=(0,)): an empty axis has no max",
    ),
    (
        lambda: gg.min(gg.zeros((0, 3)), axis=0),
        errors.ShapeError,
        "[min] (float32[0, 3], axis=(0,)): an empty axis has no min",
    ),
    (
        lambda: gg.argmax(gg.zeros((0,))),
        errors.ShapeError,
        "[argmax] (float32[0], axis=(0,)): an empty axis has no argmax",
    ),
    (
        lambda: float(x),
        errors.ShapeError,
        "[float] float64[2, 3] has more or fewer than one element",
    ),
    (
        lambda: bool(x > 1),
        errors.ShapeError,
        "[bool] bool[2, 3] has more or fewer than one element; use .any() or .all()",
    ),
    (
        lambda: gg.exp("a"),
        errors.DTypeError,
        "[exp] str is not an array; wrap it with gpugrad.tensor",
    ),
    (
        lambda: gg.exp(None),
        errors.DTypeError,
        "[exp] NoneType is not an array; wrap it with gpugrad.tensor",
    ),
    (
        lambda: gg.tensor("abc"),
        errors.DTypeError,
        "[tensor] data of type <U3 is not supported",
    ),
    (
        lambda: F.cross_entropy(gg.zeros((2,3)), gg.tensor([0, 3])),
        errors.RangeError,
        "[softmax_xent] label 3 in row 1; expected 0 to 2, or -100 to ignore it",
    ),
    (
        lambda: F.cross_entropy(gg.zeros((2,3)), gg.tensor([0, 1, 2])),
        errors.ShapeError,
        "[cross_entropy] prediction has shape [2, 3], target [3]; expected [..., C] and one class number a row, "
        "[...]",
    ),
    (
        lambda: F.cross_entropy(gg.zeros((2,3)), gg.tensor([0.0, 1.0])),
        errors.DTypeError,
        "[cross_entropy] target has dtype float32, expected integer class numbers",
    ),
    (
        lambda: F.cross_entropy(gg.zeros((2,3)), gg.tensor([[0.5,0.2,0.2],[1.0,0,0]])),
        errors.DomainError,
        "[cross_entropy] the sum of a target row is 0.9000000059604645 at [0], expected 1",
    ),
    (
        lambda: F.linear(gg.zeros((2,3)), gg.zeros((4,2))),
        errors.ShapeError,
        "[matmul] (float32[2, 3], float32[2, 4]): the inner dimensions 3 and 2 differ",
    ),
    (
        lambda: F.conv2d(gg.zeros((1,3,8,8)), gg.zeros((4,2,3,3))),
        errors.ShapeError,
        "[conv2d] input float32[1, 3, 8, 8], kernel float32[4, 2, 3, 3], groups 1: expected 2 x 1 = 2 input "
        "channels and a multiple of 1 output channels, got 3 and 4",
    ),
    (
        lambda: F.conv2d(gg.zeros((1,3,2,2)), gg.zeros((4,3,5,5))),
        errors.ShapeError,
        "[conv2d] input float32[1, 3, 2, 2], kernel float32[4, 3, 5, 5], groups 1: with stride (1, 1), padding "
        "(0, 0) and dilation (1, 1) the output would be -2 x -2; the kernel does not fit into the image",
    ),
    (
        lambda: F.dropout(x, p=1.5),
        errors.DomainError,
        "[dropout] p is 1.5; expected a probability in [0, 1]",
    ),
    (
        lambda: F.embedding(gg.tensor([0, 9]), gg.zeros((5,2))),
        errors.RangeError,
        "[embedding] id is 9 at [1], expected a row from 0 to 4",
    ),
    (
        lambda: nn.Linear(3, 4)(gg.zeros((2, 5))),
        errors.ShapeError,
        "[Linear(3 -> 4)] got shape [2, 5], expected [..., 3]",
    ),
    (
        lambda: optim.SGD([x * 2], lr=0.1),
        errors.GraphError,
        "[SGD] params[0], float64[2, 3], is computed from other tensors; only leaves are optimised",
    ),
    (
        lambda: optim.SGD([], lr=0.1),
        errors.DomainError,
        "[SGD] got no parameters",
    ),
    (
        lambda: optim.Adam([x], lr=-1),
        errors.DomainError,
        "[Adam] lr is -1, expected at least 0",
    ),
    (
        lambda: gg.linalg.inv(gg.zeros((2,3))),
        errors.ShapeError,
        "[inv] float32[2, 3] is not a square matrix or a stack of them",
    ),
    (
        lambda: gg.linalg.cholesky(gg.tensor([[1.0, 2.0],[2.0, 1.0]])),
        errors.DomainError,
        "[cholesky] float32[2, 2]: Matrix is not positive definite",
    ),
    (
        lambda: gg.einsum("ij,jk", gg.ones((2,3)), gg.ones((4,5))),
        errors.ShapeError,
        "[einsum] 'ij,jk' of float32[2, 3], float32[4, 5]: axis 'j' has lengths 3 and 4",
    ),
    (
        lambda: gg.take(gg.ones(3), gg.tensor([5]), axis=0),
        errors.RangeError,
        "[gather] index 5 at position [0] is out of range for axis 0 of length 3",
    ),
    (
        lambda: gg.where(gg.ones(2), gg.ones(3), 0),
        errors.ShapeError,
        "[where] (float32[2], float32[3], 0):",
    ),
    (
        lambda: gg.zeros((2, -1)),
        errors.ShapeError,
        "[zeros] shape [2, -1] has a negative length",
    ),
    (
        lambda: gg.ones(3, dtype="float99"),
        errors.DTypeError,
        "[ones] 'float99' is not a data type",
    ),
    (
        lambda: gg.ones(3, device="tpu"),
        errors.DeviceError,
        "[device] unknown device 'tpu'; expected 'cpu', 'cuda' or 'cuda:N'",
    ),
    (
        lambda: x.__setitem__(0, 1.0),
        errors.GraphError,
        "[setitem] a leaf that requires gradients cannot be assigned to; use y = x.at[i].set(v)",
    ),
    (
        lambda: gg.grad(lambda a: a * 2)(gg.ones(3)),
        errors.GraphError,
        "[grad] the function must return a one-element tensor, not float32[3]",
    ),
    (
        lambda: gg.random.Generator(0).uniform((2,), dtype="int32"),
        errors.DTypeError,
        "[uniform] dtype is int32; expected float16, float32 or float64",
    ),
    (
        lambda: gg.pad(x, ((1,), (2, 3, 4))),
        errors.ShapeError,
        "[pad] pad_width ((1,), (2, 3, 4)) does not fit the 2 axes of float64[2, 3]",
    ),
    (
        lambda: gg.topk(x, 5),
        errors.RangeError,
        "[topk] k is 5; axis 1 of float64[2, 3] has 3 elements",
    ),
    (
        lambda: gg.one_hot(gg.tensor([0, 5]), 3),
        errors.RangeError,
        "[one_hot] class 5 at position [1] is outside 0 <= class < 3",
    ),
    (
        lambda: gg.Tensor.backward((x * x).sum(), gg.ones(2)),
        errors.ShapeError,
        "[backward] the cotangent has shape [2], expected []",
    ),
    (
        lambda: gg.gradients(x * x, [x]),
        errors.GraphError,
        "[gradients] the output has shape [2, 3], not one element; reduce it with .sum() or .mean(), or pass a "
        "cotangent of that shape",
    ),
    (
        lambda: gg.no_grad()(lambda: (x * x).sum())().backward(),
        errors.GraphError,
        "[backward] float64[] does not depend on any tensor that requires gradients",
    ),
    (
        lambda: optim.SGD([x, x], lr=0.1),
        errors.DomainError,
        "[SGD] params[1] and params[0] are the same parameter",
    ),
    (
        lambda: nn.Parameter(gg.arange(3)),
        errors.DTypeError,
        "[requires_grad] only floating-point tensors have gradients, not int64",
    ),
    (
        lambda: gg.linalg.solve(gg.zeros((2, 2)), gg.ones(2)),
        errors.DomainError,
        "[solve] float32[2, 2], float32[2, 1]: Singular matrix",
    ),
    (
        lambda: gg.split(x, 4, axis=1),
        errors.ShapeError,
        "[split] axis 1 of float64[2, 3] does not divide into 4 equal parts",
    ),
    (
        lambda: gg.arange(0, 5, 0),
        errors.RangeError,
        "[arange] step is 0",
    ),
    (
        lambda: gg.repeat(x, -1),
        errors.DTypeError,
        "[repeat] repeats is -1; expected a count, or a list of them, not negative",
    ),
    (
        lambda: F.max_pool2d(gg.zeros((1, 1, 2, 2)), 5),
        errors.ShapeError,
        "[max_pool2d] kernel (5, 5) with padding (0, 0) and dilation (1, 1) does not fit float32[1, 1, 2, 2]",
    ),
    (
        lambda: F.layer_norm(x, (4,)),
        errors.ShapeError,
        "[layer_norm] float64[2, 3] does not end in normalized_shape [4]",
    ),
]  # fmt: skip


@pytest.mark.parametrize("mistake, kind, text", MISTAKES, ids=[t[1:30].partition("]")[0] for _, _, t in MISTAKES])
def test_what_a_mistake_is_told(mistake, kind, text):
    with pytest.raises(kind) as caught:
        mistake()
    said, _, where = str(caught.value).partition("\n  at ")
    assert said.startswith(text)
    assert where.startswith(f"{__file__}:{mistake.__code__.co_firstlineno}:")
    assert "gpugrad/" not in str(caught.value).replace(__file__, "")  # no line of the engine


def test_there_are_forty():
    assert len(MISTAKES) >= 40


def test_a_spent_graph_names_both_lines():
    y = (x * x).sum()
    y.backward()
    with pytest.raises(errors.GraphError, match=r"already differentiated by\n.*y\.backward\(\)(.|\n)*retain_graph"):
        y.backward()


def test_an_overwritten_value_names_both_lines():
    a = gg.tensor([1.0, 2.0], requires_grad=True) * 1.0
    b = a.detach()
    y = (a * a).sum()
    with gg.no_grad():
        b[0] = 5.0
    with pytest.raises(errors.GraphError, match=r"overwritten by\n.*b\[0\] = 5(.|\n)*used in\n.*a \* a"):
        y.backward()


def test_a_rule_of_the_wrong_shape_is_named():
    class Bad(gg.Function):
        check = False
        forward = staticmethod(lambda ctx, a: a * 2)
        backward = staticmethod(lambda ctx, t: gg.ones(7))

    y = Bad.apply(x).sum()
    with pytest.raises(errors.ShapeError, match=r"Bad backward\] .*input 0 gave shape \(7,\), expected \(2, 3\)"):
        y.backward()
