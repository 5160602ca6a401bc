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
    (
        lambda: gg.roll(x, 1.5),
        errors.DTypeError,
        "[roll] shift is 1.5, expected an integer",
    ),
    (
        lambda: gg.tile(x, -1),
        errors.ShapeError,
        "[tile] reps has a negative entry: (1, -1)",
    ),
    (
        lambda: gg.pad(x, 1.5),
        errors.DTypeError,
        "[pad] pad_width is 1.5, expected integers",
    ),
    (
        lambda: gg.diff(x, n=-1),
        errors.DomainError,
        "[diff] n is -1, expected at least 0",
    ),
    (
        lambda: gg.one_hot(gg.tensor([0, 1]), 2.5),
        errors.DTypeError,
        "[one_hot] num_classes is 2.5, expected an integer",
    ),
    (
        lambda: gg.topk(x, 1.5),
        errors.DTypeError,
        "[topk] k is 1.5, expected an integer",
    ),
    (
        lambda: gg.linspace(0, 1, 2.5),
        errors.DTypeError,
        "[linspace] num is 2.5, expected an integer",
    ),
    (
        lambda: gg.arange(float("inf")),
        errors.DomainError,
        "[arange] start 0, stop inf and step 1 must be finite",
    ),
    (
        lambda: gg.eye(-1),
        errors.ShapeError,
        "[eye] shape [-1, -1] has a negative length",
    ),
    (
        lambda: gg.tensor(300, dtype="uint8"),
        errors.NumberError,
        "[tensor] Python integer 300 out of bounds for uint8",
    ),
    (
        lambda: gg.full(2, 300, dtype="uint8"),
        errors.NumberError,
        "[full] (shape=(2,)): Python integer 300 out of bounds for uint8",
    ),
    (
        lambda: gg.tensor([1], dtype="int8") + 200,
        errors.NumberError,
        "[add] (int8[1], 200): Python integer 200 out of bounds for int8",
    ),
    (
        lambda: gg.zeros(2, dtype="int8").__setitem__(0, 300),
        errors.NumberError,
        "[setitem] (int8[2], 300, index=0): Python integer 300 out of bounds for int8",
    ),
    (
        lambda: gg.zeros(2).__setitem__(0, None),
        errors.DTypeError,
        "[setitem] None is not a number or an array",
    ),
    (
        lambda: gg.zeros(3).at[gg.tensor([0, 5])].add(1.0),
        errors.RangeError,
        "[put] index 5 at position [1] is out of range for axis 0 of length 3",
    ),
    (
        lambda: gg.tensor([1, 2, 3]).at[0].multiply(0.5),
        errors.DTypeError,
        "[multiply] float32[] would be truncated by int64[3]",
    ),
    (
        lambda: gg.norm(x, ord="fro"),
        errors.DomainError,
        "[norm] ord is 'fro'; expected a nonzero number, inf or -inf",
    ),
    (
        lambda: gg.linalg.matrix_power(gg.eye(2), 1.5),
        errors.DTypeError,
        "[matrix_power] n is 1.5, expected an integer",
    ),
    (
        lambda: gg.random.Generator(1.5),
        errors.DTypeError,
        "[Generator] seed is 1.5, expected an integer",
    ),
    (
        lambda: gg.random.uniform(2, low=2.0, high=1.0),
        errors.DomainError,
        "[uniform] [2.0, 1.0) is empty",
    ),
    (
        lambda: gg.random.normal((2, -1)),
        errors.ShapeError,
        "[normal] shape [2, -1] has a negative length",
    ),
    (
        lambda: gg.random.normal(2, std=-1.0),
        errors.DomainError,
        "[normal] std is -1.0, expected at least 0",
    ),
    (
        lambda: gg.random.integers((2, 3)),
        errors.DTypeError,
        "[integers] high is (2, 3), expected an integer",
    ),
    (
        lambda: gg.random.permutation(2.5),
        errors.DTypeError,
        "[permutation] n is 2.5, expected an integer",
    ),
    (
        lambda: F.conv2d(gg.ones((1, 1, 4, 4)), gg.ones((1, 1, 2, 2)), gg.ones(3)),
        errors.ShapeError,
        "[conv2d] bias has shape [3], expected [1], one number a channel",
    ),
    (
        lambda: F.binary_cross_entropy_with_logits(gg.zeros(2), gg.tensor([1.0, float("nan")])),
        errors.DomainError,
        "[binary_cross_entropy_with_logits] target is nan at [1], expected a probability in [0, 1]",
    ),
    (
        lambda: F.cross_entropy(gg.zeros((2, 2)), gg.tensor([[0.5, 0.5], [float("nan"), 1.0]])),
        errors.DomainError,
        "[cross_entropy] target is nan at [1, 0], expected a probability in [0, 1]",
    ),
    (
        lambda: F.hinge(gg.zeros(2), gg.tensor([1.0, float("nan")])),
        errors.DomainError,
        "[hinge] target is nan at [1], expected -1 and 1, or 0 and 1, in all places",
    ),
    (
        lambda: nn.Conv2d(3, 4, 0),
        errors.DomainError,
        "[Conv2d] kernel_size is 0, expected at least 1",
    ),
    (
        lambda: optim.SGD([x], lr=None),
        errors.DomainError,
        "[SGD] lr is None, expected at least 0",
    ),
    (
        lambda: optim.Adam([gg.tensor([1, 2])]),
        errors.DTypeError,
        "[Adam] params[0] is int64[2]; only floating-point tensors are optimised",
    ),
    (
        lambda: gg.grad(lambda a, b: (a * b).sum(), argnums=2)(x, x),
        errors.RangeError,
        "[grad] argnums 2 is out of range for 2 arguments",
    ),
    (
        lambda: gg.jacobian(lambda a: a * 2, argnums=-2)(x),
        errors.RangeError,
        "[jacobian] argnums -2 is out of range for 1 arguments",
    ),
    (
        lambda: gg.grad(lambda a: a.sum(), has_aux=True)(x),
        errors.GraphError,
        "[grad] with has_aux the function must return (value, aux), not float64[]",
    ),
    (
        lambda: gg.gradients([x.sum()], [x], []),
        errors.ShapeError,
        "[gradients] 0 cotangents for 1 outputs",
    ),
    (
        lambda: gg.gradients(x.sum(), [3.0]),
        errors.DTypeError,
        "[gradients] input 0 is a float, expected a Tensor",
    ),
    (
        lambda: (x * x).sum().backward(np.ones(())),
        errors.DTypeError,
        "[backward] the cotangent is a ndarray, expected a Tensor",
    ),
    (
        lambda: gg.numgrad(lambda a: a.sum(), gg.tensor([1, 2])),
        errors.DTypeError,
        "[numgrad] inputs[0] is int64[2], expected floating-point numbers",
    ),
    (
        lambda: hooked("text").backward(),
        errors.DTypeError,
        "[hook] a gradient hook returned str, expected a Tensor or None",
    ),
    (
        lambda: gg.gather(x, gg.tensor([[0], [1]]), 1),
        errors.DTypeError,
        "[gather] axis is int64[2, 1]; expected an integer",
    ),
    (
        lambda: x.astype("float99"),
        errors.DTypeError,
        "[astype] 'float99' is not a data type",
    ),
    (
        lambda: optim.SGD([x], lr=0.1).load_state_dict({}),
        errors.DomainError,
        "[SGD] the saved state has no groups; expected what state_dict() gave",
    ),
    (
        lambda: x.to(3),
        errors.DTypeError,
        "[to] 3 is neither a device nor a data type",
    ),
]  # fmt: skip


def hooked(result):
    """A number whose gradient passes a hook that returns `result`."""
    y = x * 2.0
    y.register_hook(lambda g: result)
    return y.sum()


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


def test_arguments_are_counted_from_the_end_as_well():
    """argnums=-1 once gave zeros, as no argument of that number was varied."""
    f = lambda a, b: (a * b * b).sum()
    a, b = gg.tensor([1.0, 2.0]), gg.tensor([3.0, 5.0])
    assert gg.grad(f, argnums=-1)(a, b).tolist() == [6.0, 20.0]
    assert [g.tolist() for g in gg.grad(f, argnums=(-2, 1))(a, b)] == [[9.0, 25.0], [6.0, 20.0]]
    assert gg.jacobian(f, argnums=-1)(a, b).tolist() == [6.0, 20.0]
    assert gg.hessian(f, argnums=-1)(a, b).tolist() == [[2.0, 0.0], [0.0, 4.0]]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64"])
def test_gradients_have_the_dtype_of_the_leaf_whatever_the_cotangent(dtype):
    t = gg.tensor([1.0, 2.0], requires_grad=True)
    for y in (t, t * 1.0):
        t.grad = None
        y.backward(gg.ones(2, dtype=dtype), retain_graph=True)
        assert (t.grad.dtype, t.grad.tolist()) == (np.float32, [1.0, 1.0])
        assert gg.gradients(y, t, gg.ones(2, dtype=dtype)).dtype == np.float32


NUMPYS = {
    "gradient": lambda m, x, axis: m.gradient(x, axis=axis),
    "insert": lambda m, x, axis: m.insert(x, 0, 1.0, axis=axis),
    "delete": lambda m, x, axis: m.delete(x, 0, axis=axis),
    "median": lambda m, x, axis: m.median(x, axis=axis),
    "nanmedian": lambda m, x, axis: m.nanmedian(x, axis=axis),
    "quantile": lambda m, x, axis: m.quantile(x, 0.5, axis=axis),
    "nanpercentile": lambda m, x, axis: m.nanpercentile(x, 50, axis=axis),
    "average": lambda m, x, axis: m.average(x, axis=axis, weights=[1.0, 2.0]),
    "rollaxis": lambda m, x, axis: m.rollaxis(x, axis),
    "rot90": lambda m, x, axis: m.rot90(x, axes=(0, axis)),
    "trim_zeros": lambda m, x, axis: m.trim_zeros(x, axis=axis),
    "trapezoid": lambda m, x, axis: m.trapezoid(x, axis=axis),
    "unwrap": lambda m, x, axis: m.unwrap(x, axis=axis),
    "apply_along_axis": lambda m, x, axis: m.apply_along_axis(lambda v: v, axis, x),
    "size": lambda m, x, axis: m.size(x, axis),
    "array_split": lambda m, x, axis: m.array_split(x, 2, axis=axis),
}  # fmt: skip


@pytest.mark.parametrize("axis", [5, 2, -3, 1.5])
@pytest.mark.parametrize("name", NUMPYS)
def test_an_axis_that_is_not_there_is_refused_in_numpys_functions_too(name, axis):
    """Several once took it modulo the number of axes."""
    with pytest.raises(Exception):  # noqa: B017 - NumPy has a class for each
        NUMPYS[name](np, x.detach().numpy(), axis)
    ours = errors.RangeError, errors.DTypeError, errors.ShapeError
    with pytest.raises(ours, match=r"(?s)ax[ie]s.*test_mistakes\.py"):
        NUMPYS[name](np, x.detach(), axis)


def test_sample_points_and_values_of_interp_are_as_many():
    for points, values in (([1.0, 2.0], [1.0, 2.0, 3.0]), ([], []), ([[1.0]], [[1.0]])):
        with pytest.raises(errors.ShapeError, match="interp"):
            np.interp(x.detach(), gg.tensor(points), gg.tensor(values))


def test_masked_arrays_do_not_lose_their_mask():
    masked = np.ma.masked_array([1.0, 2.0], [True, False])
    for make in (gg.tensor, gg.asarray, lambda a: gg.ones(2) * a):
        with pytest.raises(errors.DTypeError, match="masked"):
            make(masked)
    assert gg.tensor(np.ma.masked_array([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert gg.tensor(masked.filled(0.0)).tolist() == [0.0, 2.0]


def test_none_is_no_data_type():
    """NumPy takes it for float64, which float32 must not become in silence."""
    for call in (lambda: x.astype(None), lambda: gg.set_default_dtype(None), lambda: gg.astype(x, None)):
        with pytest.raises(errors.DTypeError, match="None"):
            call()
    assert gg.get_default_dtype() == np.float32


def test_arrays_that_no_machine_holds():
    for call in (lambda: gg.zeros(2**62), lambda: gg.ones((2**40, 2**40)), lambda: gg.full((10**8, 10**8), 1.0)):
        with pytest.raises((errors.ShapeError, errors.OutOfMemoryError), match=r"test_mistakes\.py"):
            call()
