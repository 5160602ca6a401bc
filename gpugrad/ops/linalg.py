"""Products and decompositions of matrices: this file is `gpugrad.linalg`.

Products of every kind come down to `matmul`. Matrices are the last two axes; all others are batch axes.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpugrad.backends import blas, threads
from gpugrad.define import general, linear, multilinear, nondiff
from gpugrad.errors import DomainError, GraphError, RangeError, ShapeError, describe, fail, notice
from gpugrad.launch import linalg as launch
from gpugrad.op import RECORDING as G
from gpugrad.ops import elementwise, reduce
from gpugrad.ops._axes import normalize_axis, one_axis, whole
from gpugrad.ops.creation import eye
from gpugrad.ops.index import working
from gpugrad.ops.shape import (
    astype,
    broadcast_to,
    concat,
    expand_dims,
    matrix_transpose,
    operand,
    reshape,
    roll,
)
from gpugrad.rules import add_up
from gpugrad.tensor import Tensor

__all__ = [
    "cholesky", "cross", "det", "diag", "diagonal", "dot", "eigh", "eigvalsh", "einsum", "inv", "kron", "lstsq",
    "matmul", "matrix_norm", "matrix_power", "matrix_rank", "matrix_transpose", "outer", "pinv", "qr", "slogdet",
    "solve", "svd", "svdvals", "tensordot", "trace", "vecdot", "vector_norm",
]  # fmt: skip


class LstsqResult(NamedTuple):
    """What `lstsq` returns."""

    solution: Any
    residuals: Any
    rank: Any
    singular_values: Any


class EighResult(NamedTuple):
    """What `eigh` returns."""

    eigenvalues: Any
    eigenvectors: Any


class QRResult(NamedTuple):
    """What `qr` returns."""

    Q: Any
    R: Any


class SlogdetResult(NamedTuple):
    """What `slogdet` returns."""

    sign: Any
    logabsdet: Any


class SVDResult(NamedTuple):
    """What `svd` returns."""

    U: Any
    S: Any
    Vh: Any


# --- matmul -----------------------------------------------------------------------------------------------


def _matmul(xp: Any, x: Any, y: Any, into: Any = None) -> Any:
    """Half precision is summed in float32 on the CPU; a stack times one matrix is one product."""
    if xp is np and x.dtype.itemsize < 4 and x.dtype.kind in "fV":
        wide = working(x.dtype)
        return _matmul(xp, x.astype(wide), y.astype(wide)).astype(x.dtype)
    if y.ndim == 2 < x.ndim and x.shape[-1] == y.shape[0]:
        rows = None if into is None else into.reshape(-1, y.shape[1])
        product = _matmul(xp, x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), y, rows)
        return product.reshape(*x.shape[:-1], y.shape[1]) if into is None else into
    if xp is np and x.ndim > 1 and y.ndim > 2 and x.shape[-1] == y.shape[-2] == 1:
        return _outers(x, y, into)
    if xp is np and y.ndim and x.size * y.shape[-1] > blas.ALONE:
        return blas.matmul(x, y, into)
    return xp.matmul(x, y, out=into)


def _outers(x: Any, y: Any, into: Any) -> Any:
    """A stack of columns times rows: no work for a BLAS, and faster so than by multiply, which loops over each row."""
    lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = (np.broadcast_to(a, (*lead, *a.shape[-2:])) for a in (x, y))
    out = np.empty((*lead, x.shape[-2], y.shape[-1]), np.result_type(x, y)) if into is None else into
    pieces = threads.spans(len(out), math.prod(out.shape[1:]))
    threads.share(lambda s: np.einsum("...ik,...kj->...ij", x[s], y[s], out=out[s]), pieces, out.size)
    return out


def _matmul_vjp_x(F: Any, t: Any, _out: Any, x_shape: Any, y: Any) -> Any:
    flat = len(x_shape) == 1
    t, y = _as_matrix(F, t, flat, len(y.shape) == 1), y if len(y.shape) > 1 else F.reshape(y, shape=(*y.shape, 1))
    g = F.matmul(t, F.matrix_transpose(y))
    return F.reshape(g, shape=(*g.shape[:-2], g.shape[-1])) if flat else g


def _matmul_vjp_y(F: Any, t: Any, _out: Any, x: Any, y_shape: Any) -> Any:
    flat = len(y_shape) == 1
    t, x = _as_matrix(F, t, len(x.shape) == 1, flat), x if len(x.shape) > 1 else F.reshape(x, shape=(1, *x.shape))
    if len(y_shape) < 3 <= len(x.shape):  # one product, instead of a stack of them that is then summed
        t, x = (F.reshape(a, shape=(math.prod(a.shape[:-1]), a.shape[-1])) for a in (t, x))
    g = F.matmul(F.matrix_transpose(x), t)
    return F.reshape(g, shape=g.shape[:-1]) if flat else g


def _as_matrix(F: Any, t: Any, row: bool, column: bool) -> Any:
    """The cotangent with the length-1 axes back that a 1-d operand left out."""
    shape = (*t.shape, 1) if column else t.shape
    shape = (*shape[:-1], 1, shape[-1]) if row else shape
    return F.reshape(t, shape=shape) if row or column else t


matmul = multilinear(
    "matmul", _matmul, _matmul_vjp_x, _matmul_vjp_y, attrs=False, cuda=launch.matmul,
    doc="Matrix product of the last two axes, batch axes broadcast; a 1-d operand is a row (left) or a column (right).",
)  # fmt: skip


def _affine(xp: Any, x: Any, weight: Any, bias: Any, into: Any = None) -> Any:
    out = _matmul(xp, x, weight.T, into)
    out += bias
    return out


def _affine_vjp_weight(F: Any, t: Any, _out: Any, x: Any, _weight: Any, _bias: Any) -> Any:
    t, x = (F.reshape(a, shape=(math.prod(a.shape[:-1]), a.shape[-1])) for a in (t, x))
    return F.matmul(F.matrix_transpose(t), x)


def _affine_jvp(F: Any, ts: Any, out: Any, x: Any, weight: Any, _bias: Any) -> Any:
    parts = [] if ts[0] is None else [F.matmul(ts[0], F.matrix_transpose(weight))]
    parts += [] if ts[1] is None else [F.matmul(x, F.matrix_transpose(ts[1]))]
    parts += [] if ts[2] is None else [F.broadcast_to(ts[2], shape=out.shape)]
    return functools.reduce(operator.add, parts)


_affine_ = general(
    "affine", _affine, lambda F, t, _out, _x, weight, _bias: F.matmul(t, weight), _affine_vjp_weight,
    lambda F, t, _out, _x, _weight, _bias: t, jvp=_affine_jvp, promotes=True, cuda=launch.affine,
)  # fmt: skip


def affine(x: Any, weight: Any, bias: Any) -> Any:
    """x weight' + bias on the last axis: x (..., in), weight (out, in), bias (out,) to (..., out)."""
    x, weight, bias = (operand(a, "affine") for a in (x, weight, bias))
    if x.ndim and weight.ndim == 2 and weight.shape == (bias.size, x.shape[-1]) and bias.ndim == 1:
        return _affine_(x, weight, bias)  # in one pass
    return matmul(x, matrix_transpose(weight)) + bias


# --- einsum -----------------------------------------------------------------------------------------------


def einsum(subscripts: str, *operands: Any) -> Any:
    """Sum of products by Einstein's convention, such as 'bij,bjk->bik'; differentiable to any order.

    Ellipsis, implicit output, repeated letters within an operand (its diagonal) and broadcasting of length-1 axes work
    as in NumPy. Several operands are contracted in pairs, in an order chosen to cost little, each pair as one matmul.
    Raises ShapeError for malformed subscripts or lengths that do not match.
    """
    like = next((x for x in operands if isinstance(x, Tensor)), None)
    xs = [operand(x, "einsum", like) for x in operands]
    terms, out = _terms(subscripts, xs)
    pairs = [_diagonals(x, term) for x, term in zip(xs, terms)]
    lengths: dict[str, int] = {}
    for x, term in pairs:
        for c, n in zip(term, x.shape):
            known = lengths.setdefault(c, n)
            if n != known and 1 not in (n, known):
                raise _einsum_error(subscripts, xs, f"axis {c!r} has lengths {known} and {n}")
            lengths[c] = n if known == 1 else known
    pairs = [_without_ones(x, term, lengths) for x, term in pairs]
    while len(pairs) > 1:
        i, j = _cheapest(pairs, out, lengths) if len(pairs) > 2 else (0, 1)
        others = [p for k, p in enumerate(pairs) if k not in (i, j)]
        keep = set(out).union(*(term for _, term in others))
        pairs = [*others, _contract(*pairs[i], *pairs[j], keep, out)]
    x, term = _summed(*pairs[0], set(out))
    return _ordered(x, term, out)


def _einsum_error(subscripts: str, xs: list[Tensor], reason: str) -> Exception:
    return fail(ShapeError, "einsum", f"{subscripts!r} of {', '.join(map(describe, xs))}: {reason}")


def _terms(subscripts: str, xs: list[Tensor]) -> tuple[list[str], str]:
    """One string of letters per operand, and the output's: ellipses written out, the implicit output found."""
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(xs):
        raise _einsum_error(subscripts, xs, f"{len(terms)} terms for {len(xs)} operands")
    extra = 0  # the most axes that an ellipsis stands for
    for x, term in zip(xs, terms):
        named = len(term.replace("...", "", 1))
        if x.ndim < named or ("..." not in term and x.ndim != named):
            raise _einsum_error(subscripts, xs, f"{term!r} names {named} axes of {describe(x)}")
        extra = max(extra, x.ndim - named)
    dots = [chr(0x100 + i) for i in range(extra)]  # letters that no user writes

    def written(term: str, count: int) -> str:
        return term.replace("...", "".join(dots[extra - count :]), 1)

    full = [written(term, x.ndim - len(term.replace("...", "", 1))) for x, term in zip(xs, terms)]
    counts = Counter("".join(terms).replace(".", ""))
    out = written(right if arrow else "..." + "".join(sorted(c for c, n in counts.items() if n == 1)), extra)
    for c in "".join(full) + out:
        if not c.isalpha():
            raise _einsum_error(subscripts, xs, f"unexpected {c!r}")
    if len(set(out)) != len(out) or not set(out) <= set("".join(full)):
        raise _einsum_error(subscripts, xs, "output letters must be different and stand in an operand")
    return full, out


def _diagonals(x: Any, term: str) -> tuple[Any, str]:
    """Axes that share a letter become their diagonal."""
    while len(set(term)) < len(term):
        c = next(c for c in term if term.count(c) > 1)
        i = term.index(c)
        j = term.index(c, i + 1)
        if x.shape[i] != x.shape[j]:
            raise fail(ShapeError, "einsum", f"axes {c!r} of {describe(x)} have lengths {x.shape[i]} and {x.shape[j]}")
        x = diagonal(x, axis1=i, axis2=j)
        term = term[:i] + term[i + 1 : j] + term[j + 1 :] + c
    return x, term


def _without_ones(x: Any, term: str, lengths: dict[str, int]) -> tuple[Any, str]:
    """Length-1 axes that broadcast against a longer one are dropped: the operand is constant along them."""
    keep = [c for c, n in zip(term, x.shape) if n == lengths[c]]
    if len(keep) < len(term):
        x = reshape(x, tuple(lengths[c] for c in keep))
    return x, "".join(keep)


def _cheapest(pairs: list[tuple[Any, str]], out: str, lengths: dict[str, int]) -> tuple[int, int]:
    """The pair whose contraction shrinks the total size most; of equals the one with the fewest products."""

    def cost(i: int, j: int) -> tuple[int, int]:
        union = set(pairs[i][1]) | set(pairs[j][1])
        keep = set(out).union(*(term for k, (_, term) in enumerate(pairs) if k not in (i, j)))
        size = math.prod(lengths[c] for c in union & keep)
        return size - pairs[i][0].size - pairs[j][0].size, math.prod(lengths[c] for c in union)

    return min(((i, j) for j in range(len(pairs)) for i in range(j)), key=lambda ij: cost(*ij))


def _summed(x: Any, term: str, keep: set[str]) -> tuple[Any, str]:
    """Letters that nothing else needs are summed away."""
    gone = tuple(i for i, c in enumerate(term) if c not in keep)
    return (G.sum(x, axis=gone, keepdims=False), "".join(c for c in term if c in keep)) if gone else (x, term)


def _ordered(x: Any, term: Sequence[str], want: Sequence[str]) -> Any:
    axes = tuple(term.index(c) for c in want)
    return x if axes == tuple(range(len(axes))) else G.transpose(x, axes=axes)


def _contract(x: Any, a: str, y: Any, b: str, keep: set[str], out: str) -> tuple[Any, str]:
    """Product of two operands summed over the letters outside `keep`: one matmul, or one multiply if none is summed."""
    x, a = _summed(x, a, keep | set(b))
    y, b = _summed(y, b, keep | set(a))
    summed = [c for c in a if c in b and c not in keep]
    both = sorted((c for c in a if c in b and c in keep), key=lambda c: out.find(c))
    left, right = ([c for c in term if c not in both and c not in summed] for term in (a, b))
    if not summed or (both and not left and not right):
        whole = both + left + right + summed
        product = _spread_out(x, a, whole) * _spread_out(y, b, whole)
        return _summed(product, "".join(whole), keep)
    length = dict(zip(a + b, (*x.shape, *y.shape)))
    batch, rows, columns, inner = ([length[c] for c in part] for part in (both, left, right, summed))
    x = _grouped(_ordered(x, a, both + left + summed), (*batch, math.prod(rows), math.prod(inner)))
    y = _grouped(_ordered(y, b, both + summed + right), (*batch, math.prod(inner), math.prod(columns)))
    return _grouped(matmul(x, y), (*batch, *rows, *columns)), "".join(both + left + right)


def _grouped(x: Any, shape: tuple[int, ...]) -> Any:
    return x if tuple(x.shape) == shape else G.reshape(x, shape=shape)


def _spread_out(x: Any, term: str, whole: list[str]) -> Any:
    """x with its axes in the order of `whole`, and length 1 where it lacks a letter."""
    mine = [c for c in whole if c in term]
    length = dict(zip(term, x.shape))
    return _grouped(_ordered(x, term, mine), tuple(length.get(c, 1) for c in whole))


# --- products on matmul -----------------------------------------------------------------------------------


def tensordot(x: Any, y: Any, axes: Any = 2) -> Any:
    """Sum over paired axes: the last n of x with the first n of y, or the given (axes of x, axes of y)."""
    x, y = operand(x, "tensordot"), operand(y, "tensordot")
    if isinstance(axes, int):
        if not 0 <= axes <= min(x.ndim, y.ndim):
            raise fail(ShapeError, "tensordot", f"axes={axes} for {describe(x)} and {describe(y)}")
        axes = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
    ax, ay = (normalize_axis(a, v.ndim, "tensordot") for a, v in zip(axes, (x, y)))
    if [x.shape[i] for i in ax] != [y.shape[j] for j in ay]:
        sides = f"axes {list(ax)} of {describe(x)} and {list(ay)} of {describe(y)}"
        raise fail(ShapeError, "tensordot", f"{sides} differ in length")
    a, b = ([chr(0x100 + start + i) for i in range(v.ndim)] for v, start in ((x, 0), (y, x.ndim)))
    for i, j in zip(ax, ay):
        b[j] = a[i]
    out = "".join([c for c in a if c not in b] + [c for c in b if c not in a])
    product, term = _contract(x, "".join(a), y, "".join(b), set(out), out)
    return _ordered(product, term, out)


def vecdot(x: Any, y: Any, axis: int = -1) -> Any:
    """Sum of products along an axis, other axes broadcast; complex x is conjugated."""
    x, y = operand(x, "vecdot"), operand(y, "vecdot")
    x = elementwise.conj(x) if x.dtype.kind == "c" else x
    if x.ndim == y.ndim == 1:
        return matmul(x, y)
    axis = one_axis(axis, min(x.ndim, y.ndim), "vecdot") - min(x.ndim, y.ndim)
    if x.shape[axis] != y.shape[axis]:
        raise fail(ShapeError, "vecdot", f"axis {axis} of {describe(x)} and {describe(y)} differs in length")
    product = x * y
    kind = product.dtype if product.dtype.kind in "iu" else None  # as a product of vectors, not 64 bits as a sum
    return G.sum(product, axis=(product.ndim + axis,), keepdims=False, dtype=kind)


def dot(x: Any, y: Any) -> Any:
    """NumPy's dot: product with a number, inner product of vectors, else the last axis of x with y's second to last."""
    x, y = operand(x, "dot"), operand(y, "dot")
    if x.ndim == 0 or y.ndim == 0:
        return x * y
    return matmul(x, y) if x.ndim <= 2 and y.ndim <= 2 else tensordot(x, y, ((-1,), (-2 if y.ndim > 1 else -1,)))


def outer(x: Any, y: Any) -> Any:
    """Products of every element of x with every element of y; both are flattened. Shape (x.size, y.size)."""
    return reshape(x, (-1, 1)) * reshape(y, (1, -1))


def kron(x: Any, y: Any) -> Any:
    """Kronecker product: every element of x times the whole of y, as blocks."""
    x, y = operand(x, "kron"), operand(y, "kron")
    n = max(x.ndim, y.ndim)
    a, b = ((1,) * (n - v.ndim) + tuple(v.shape) for v in (x, y))
    product = reshape(x, tuple(k for m in a for k in (m, 1))) * reshape(y, tuple(k for m in b for k in (1, m)))
    return reshape(product, tuple(p * q for p, q in zip(a, b)))


def cross(x: Any, y: Any, axis: int = -1) -> Any:
    """Vector product of 3-vectors along an axis, other axes broadcast."""
    x, y = operand(x, "cross"), operand(y, "cross")
    for v in (x, y):
        one_axis(axis, v.ndim, "cross")
    if x.shape[axis] != 3 or y.shape[axis] != 3:
        raise fail(ShapeError, "cross", f"axis {axis} of {describe(x)} and {describe(y)} must have length 3")
    return roll(x * roll(y, -1, axis) - roll(x, -1, axis) * y, -1, axis)


def matrix_power(x: Any, n: int) -> Any:
    """The n-th power of a square matrix, by repeated squaring; n < 0 powers the inverse."""
    x = _square(x, "matrix_power")
    n = whole(n, "matrix_power", "n")
    if n < 0:
        x, n = inv(x), -n
    result = None if n else broadcast_to(eye(x.shape[-1], dtype=x.dtype, device=x.device), x.shape)
    while n:
        if n & 1:
            result = x if result is None else matmul(result, x)
        n >>= 1
        x = matmul(x, x) if n else x
    return result


# --- norms ------------------------------------------------------------------------------------------------


def vector_norm(x: Any, *, axis: Any = None, keepdims: bool = False, ord: float = 2) -> Any:
    """(sum |x|^ord)^(1/ord) over axes (default all); inf, -inf: the largest, smallest |x|; 0: how many nonzeros."""
    x = _magnitude(operand(x, "vector_norm"))
    if ord == 0:
        return reduce.sum(astype(x != 0, x.dtype), axis, keepdims=keepdims)
    return reduce.norm(x, axis, ord=ord, keepdims=keepdims)


def _magnitude(x: Tensor) -> Any:
    """Absolute values of complex numbers; real numbers as they are, for norms take their own."""
    return elementwise.abs(x) if x.dtype.kind == "c" else x


def matrix_norm(x: Any, *, keepdims: bool = False, ord: Any = "fro") -> Any:
    """A norm of each matrix.

    ord: 'fro', 'nuc' (sum of singular values), 2 and -2 (largest, smallest singular value), 1 and -1 (largest, smallest
    column sum of |x|), inf and -inf (the same of rows). Raises RangeError for others.
    """
    x = operand(x, "matrix_norm")
    if ord == "fro":
        return reduce.norm(_magnitude(x), (-2, -1), keepdims=keepdims)
    if ord not in ("nuc", 2, -2, 1, -1, math.inf, -math.inf):
        raise fail(RangeError, "matrix_norm", f"ord is {ord!r}; expected 'fro', 'nuc', 1, -1, 2, -2, inf or -inf")
    if ord == "nuc":
        out = reduce.sum(svdvals(x), -1)
    else:
        parts = svdvals(x) if abs(ord) == 2 else reduce.sum(elementwise.abs(x), -1 if abs(ord) == math.inf else -2)
        largest = reduce.max if parts.shape[-1] else reduce.sum  # of no columns: 0
        out = (largest if ord > 0 else reduce.min)(parts, -1)
    return expand_dims(out, (-2, -1)) if keepdims else out


# --- diagonals --------------------------------------------------------------------------------------------


def _undiagonal(xp: Any, t: Any, offset: int, axis1: int, axis2: int, shape: tuple[int, ...]) -> Any:
    out = xp.zeros(shape, t.dtype)
    i = xp.arange(t.shape[-1])
    xp.moveaxis(out, (axis1, axis2), (-2, -1))[..., i + max(-offset, 0), i + max(offset, 0)] = t
    return out


_diagonal = linear(
    "diagonal", lambda xp, x, offset, axis1, axis2: xp.diagonal(x, offset, axis1, axis2),
    lambda F, t, _out, x_shape, offset, axis1, axis2: (
        F.undiagonal(t, offset=offset, axis1=axis1, axis2=axis2, shape=x_shape)
    ),
)  # fmt: skip
_undiag = linear(
    "undiagonal", _undiagonal,
    lambda F, t, _out, _x, offset, axis1, axis2, shape: F.diagonal(t, offset=offset, axis1=axis1, axis2=axis2),
    doc="Zeros of `shape` with t on a diagonal.",
)  # fmt: skip


def diagonal(x: Any, *, offset: int = 0, axis1: int = -2, axis2: int = -1) -> Any:
    """The diagonal of two axes as a new last axis; offset > 0 is above the main one. A read-only view."""
    x = operand(x, "diagonal")
    i, j = normalize_axis((axis1, axis2), x.ndim, "diagonal")
    return _diagonal(x, offset=offset, axis1=i, axis2=j)


def diag(x: Any, k: int = 0) -> Any:
    """Diagonal k of a matrix, or the square matrix with the given vector on it."""
    x = operand(x, "diag")
    if x.ndim == 2:
        return diagonal(x, offset=k)
    if x.ndim != 1:
        raise fail(ShapeError, "diag", f"{describe(x)} has {x.ndim} axes, expected 1 or 2")
    n = x.size + abs(k)
    return _undiag(x, offset=k, axis1=0, axis2=1, shape=(n, n))


def trace(x: Any, *, offset: int = 0, dtype: Any = None) -> Any:
    """Sum of the diagonal of the last two axes, in `dtype` if given; integers sum to 64 bits."""
    return reduce.sum(diagonal(x, offset=offset), -1, dtype=dtype)


# --- inverses and decompositions --------------------------------------------------------------------------


def _lapack(fwd: Callable[..., Any]) -> Callable[..., Any]:
    """Half precision computes in float32 and comes back; a singular matrix is a DomainError."""

    @functools.wraps(fwd)
    def run(xp: Any, *xs: Any, **attrs: Any) -> Any:
        kind = xs[0].dtype
        half = working(kind) != kind
        try:
            wide = (x.astype(working(x.dtype), copy=False) if hasattr(x, "dtype") else x for x in xs)
            out = fwd(xp, *wide, **attrs)
        except np.linalg.LinAlgError as error:
            raise fail(DomainError, fwd.__name__.strip("_"), f"{', '.join(map(describe, xs))}: {error}") from None
        if not half:
            return out
        return tuple(o.astype(kind) for o in out) if isinstance(out, tuple) else out.astype(kind)

    return run


def _square(x: Any, op: str) -> Tensor:
    x = operand(x, op)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise fail(ShapeError, op, f"{describe(x)} is not a square matrix or a stack of them")
    return x  # type: ignore[no-any-return]


def _matrices(x: Any, op: str) -> Tensor:
    x = operand(x, op)
    if x.ndim < 2:
        raise fail(ShapeError, op, f"{describe(x)} has {x.ndim} axes, expected at least 2")
    return x  # type: ignore[no-any-return]


def _adjoint(x: Any) -> Any:
    """The transposed matrices, of complex ones the conjugates."""
    return matrix_transpose(elementwise.conj(x) if x.dtype.kind == "c" else x)


def mT(F: Any, x: Any) -> Any:
    """The last two axes exchanged, in a rule."""
    return F.matrix_transpose(x)


def _halved(F: Any, x: Any) -> Any:
    """The lower triangle with half the diagonal: what a symmetric change means for a triangular factor."""
    return (F.tril(x, k=0) + F.tril(x, k=-1)) * 0.5


def _columns(F: Any, t: Any) -> Any:
    """A number per matrix, as a 1 by 1 matrix."""
    return F.reshape(t, shape=(*t.shape, 1, 1))


def _hermitian(xp: Any, x: Any) -> Any:
    """The symmetric part of each matrix, of a complex one the Hermitian part."""
    turned = x.swapaxes(-1, -2)
    return (x + (xp.conj(turned) if x.dtype.kind == "c" else turned)) / 2


@_lapack
def _inv(xp: Any, x: Any) -> Any:
    return xp.linalg.inv(x)


@_lapack
def _det(xp: Any, x: Any) -> Any:
    return xp.linalg.det(x)


@_lapack
def _slogdet(xp: Any, x: Any) -> Any:
    return tuple(xp.linalg.slogdet(x))


@_lapack
def _solve(xp: Any, x: Any, y: Any) -> Any:
    return xp.linalg.solve(x, y)


@_lapack
def _cholesky(xp: Any, x: Any) -> Any:
    return xp.linalg.cholesky(_hermitian(xp, x))


@_lapack
def _eigh(xp: Any, x: Any) -> Any:
    return tuple(xp.linalg.eigh(_hermitian(xp, x)))


@_lapack
def _svd(xp: Any, x: Any, full: bool) -> Any:
    return tuple(xp.linalg.svd(x, full_matrices=full))


@_lapack
def _qr(xp: Any, x: Any, complete: bool) -> Any:
    return tuple(xp.linalg.qr(x, mode="complete" if complete else "reduced"))


@_lapack
def _pinv(xp: Any, x: Any, rtol: Any) -> Any:
    """From the singular values above rtol times the largest, in one way on both devices."""
    if not x.size:
        return xp.zeros((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)
    u, s, vh = xp.linalg.svd(x, full_matrices=False)
    kept = s > _cutoff(s, x.shape, rtol)
    inverse = xp.where(kept, 1 / xp.where(kept, s, 1), 0).astype(s.dtype)
    turned = [xp.conj(v) if x.dtype.kind == "c" else v for v in (u.swapaxes(-1, -2), vh.swapaxes(-1, -2))]
    return xp.matmul(turned[1] * inverse[..., None, :], turned[0])


def _matrix_rank(xp: Any, x: Any, rtol: Any) -> Any:
    if not x.size:
        return xp.zeros(x.shape[:-2], "int64")
    s = xp.linalg.svd(x.astype(working(x.dtype), copy=False), compute_uv=False)
    return (s > _cutoff(s, x.shape, rtol)).sum(axis=-1, keepdims=False)


def _cutoff(s: Any, shape: tuple[int, ...], rtol: Any) -> Any:
    """The singular value that counts as zero; by default the largest times its rounding error, as NumPy has it."""
    rtol = max(shape[-2:]) * np.finfo(s.dtype).eps if rtol is None else rtol
    return (rtol[..., None] if hasattr(rtol, "shape") and rtol.ndim else rtol) * s.max(axis=-1, keepdims=True)


def _beside(F: Any, w: Any) -> tuple[Any, Any]:
    """w as rows, w[j] at (i, j), and as columns, w[i] at (i, j)."""
    n, lead = w.shape[-1], tuple(w.shape[:-1])
    return F.reshape(w, shape=(*lead, 1, n)), F.reshape(w, shape=(*lead, n, 1))


def _zero(F: Any, d: Any, w: Any) -> Any:
    """Whether d, made of eigenvalues or singular values w, differs from 0 by no more than their rounding errors."""
    size = F.sum(F.abs(w), axis=(len(w.shape) - 1,), keepdims=True)
    size = size if len(d.shape) == len(w.shape) else F.reshape(size, shape=(*size.shape, 1))
    return F.abs(d) <= size * (8 * float(np.finfo(w.dtype.type).eps))


def _inverse(F: Any, d: Any, zero: Any) -> Any:
    """1 / d, and 0 where d counts as zero: what the gauge decides has no part in a gauge-invariant function."""
    return F.where(zero, 0, 1 / F.where(zero, 1, d))


def _gauge(xp: Any, free: Any, part: Any, *cotangents: Any, of: str) -> Any:
    """A notice if part, made of these cotangents, is not zero where the gauge is free. A GPU is not asked."""
    if xp is np and part.size:
        scale = max(np.abs(t).max() for t in cotangents if t is not None)
        if np.abs(np.where(free, part, 0)).max() > np.finfo(part.dtype).eps ** 0.5 * scale:
            notice(
                of,
                "values coincide or vanish, and what the function makes of them depends on which vectors were chosen: "
                "the part of the gradient that this choice decides is left out",
            )
    return free


def _on_diagonal(F: Any, w: Any) -> Any:
    n, k = w.shape[-1], len(w.shape)
    return F.undiagonal(w, offset=0, axis1=k - 1, axis2=k, shape=(*w.shape, n))


def _diagonal_of(F: Any, x: Any) -> Any:
    return F.diagonal(x, offset=0, axis1=len(x.shape) - 2, axis2=len(x.shape) - 1)


def _symmetric(F: Any, x: Any) -> Any:
    return (x + mT(F, x)) * 0.5


def _total(F: Any, x: Any) -> Any:
    return F.sum(x, axis=(len(x.shape) - 2, len(x.shape) - 1), keepdims=False)


def _right_solve(F: Any, x: Any, y: Any) -> Any:
    """x times the inverse of y."""
    return mT(F, F.solve(mT(F, y), mT(F, x)))


def _inv_vjp(F: Any, t: Any, out: Any, _x: Any) -> Any:
    return -F.matmul(F.matmul(mT(F, out), t), mT(F, out))


def _solve_vjp_x(F: Any, t: Any, out: Any, x: Any, _y: Any) -> Any:
    return -F.matmul(F.solve(mT(F, x), t), mT(F, out))


def _solve_jvp(F: Any, ts: Any, out: Any, x: Any, y: Any) -> Any:
    parts = [] if ts[1] is None else [ts[1]]
    parts += [] if ts[0] is None else [-F.matmul(ts[0], out)]
    return F.solve(x, parts[0] if len(parts) == 1 else parts[0] + parts[1])


def _slogdet_vjp(F: Any, t: Any, _out: Any, x: Any) -> Any:
    return F.zeros_like(x) if t[1] is None else _columns(F, t[1]) * mT(F, F.inv(x))


def _cholesky_vjp(F: Any, t: Any, out: Any, _x: Any) -> Any:
    """Murray 2016, eq. 9: the inverse factor from both sides of the halved triangle."""
    inner = _halved(F, F.matmul(mT(F, out), F.tril(t, k=0)))
    return _symmetric(F, _right_solve(F, F.solve(mT(F, out), inner), out))


def _cholesky_jvp(F: Any, ts: Any, out: Any, _x: Any) -> Any:
    return F.matmul(out, _halved(F, _right_solve(F, F.solve(out, _symmetric(F, ts[0])), mT(F, out))))


def _eigh_vjp(F: Any, t: Any, out: Any, _x: Any) -> Any:
    """Giles 2008, section 3.1. Where eigenvalues coincide, any rotation of their vectors is as good: see `_inverse`."""
    (w, v), (tw, tv) = out, t
    rows, columns = _beside(F, w)
    equal = _zero(F, rows - columns, w)
    inner: Any = 0.0
    if tv is not None:
        turn = F.matmul(mT(F, v), tv)
        F.gauge(equal, turn - mT(F, turn), tv, of="eigh")
        inner = turn * _inverse(F, rows - columns, equal)
    if tw is not None:
        F.gauge(equal, _difference(F, tw), tw, of="eigh")
        inner = _on_diagonal(F, tw) + inner
    return _symmetric(F, F.matmul(F.matmul(v, inner), mT(F, v)))


def _difference(F: Any, t: Any) -> Any:
    """t[j] - t[i]."""
    rows, columns = _beside(F, t)
    return rows - columns


def _eigh_jvp(F: Any, ts: Any, out: Any, _x: Any) -> Any:
    w, v = out
    moved = F.matmul(F.matmul(mT(F, v), _symmetric(F, ts[0])), v)
    gaps = _difference(F, w)
    return _diagonal_of(F, moved), F.matmul(v, moved * _inverse(F, gaps, _zero(F, gaps, w)))


def _reduced_svd(F: Any, out: Any, t: Any) -> Any:
    """Full factors and their cotangents without the vectors to no singular value, whose choice is arbitrary."""
    (u, s, vh), (tu, ts, tvh) = out, t
    k = s.shape[-1]
    for full, cotangent in ((u.shape[-1] > k, tu), (vh.shape[-2] > k, tvh)):
        if full and cotangent is not None:
            raise fail(
                GraphError, "svd", "vectors to no singular value have no derivative; use svd(x, full_matrices=False)"
            )
    if u.shape[-1] > k:
        u = F.getitem(u, index=(..., slice(0, k)))
    if vh.shape[-2] > k:
        vh = F.getitem(vh, index=(..., slice(0, k), slice(None)))
    return (u, s, vh), (tu, ts, tvh)


def _antisymmetric(F: Any, x: Any) -> Any:
    return (x - mT(F, x)) * 0.5


def _svd_vjp(F: Any, t: Any, out: Any, _x: Any, full: bool) -> Any:
    """Townsend 2016, with (a s[j] + s[i] b) / (s[j]^2 - s[i]^2) of rotations a of u and b of v taken apart.

    It is (a + b) / 2 over the difference of singular values, for u and v turning together, plus (a - b) / 2 over the
    sum. The first is not determined where singular values coincide, nor is the second where they vanish, nor what
    leaves the span of u and v there: see `_inverse`. A vanishing singular value itself is at a kink, with slope 0.
    """
    (u, s, vh), (tu, ts, tvh) = _reduced_svd(F, out, t)
    rows, columns = _beside(F, s)
    equal, vanish, empty = _zero(F, rows - columns, s), _zero(F, rows + columns, s), _zero(F, s, s)
    shrink, wide, left, right = _inverse(F, s, empty), _beside(F, empty)[0], None, None
    inner: Any = 0.0
    if tu is not None or tvh is not None:
        a = None if tu is None else F.matmul(mT(F, u), tu)
        b = None if tvh is None else F.matmul(vh, mT(F, tvh))
        together = _antisymmetric(F, add_up([x for x in (a, b) if x is not None]))
        apart = _antisymmetric(F, a if b is None else -b if a is None else a - b)
        F.gauge(equal, together, tu, tvh, of="svd")
        F.gauge(vanish, apart, tu, tvh, of="svd")
        inner = together * _inverse(F, rows - columns, equal) + apart * _inverse(F, rows + columns, vanish)
        if tu is not None:
            out_u = tu - F.matmul(u, a)
            F.gauge(wide, out_u, tu, of="svd")
            left = F.matmul(out_u * _beside(F, shrink)[0], vh)
        if tvh is not None:
            out_v = mT(F, tvh) - F.matmul(mT(F, vh), b)
            F.gauge(wide, out_v, tvh, of="svd")
            right = F.matmul(u, mT(F, out_v * _beside(F, shrink)[0]))
    if ts is not None:
        F.gauge(equal, _difference(F, ts), ts, of="svd")
        inner = _on_diagonal(F, F.where(empty, 0, ts)) + inner
    return add_up([F.matmul(F.matmul(u, inner), vh), *(x for x in (left, right) if x is not None)])


def _svd_jvp(F: Any, ts: Any, out: Any, x: Any, full: bool) -> Any:
    (u, s, vh), (dx,) = out, ts
    if full and x.shape[-1] != x.shape[-2]:
        raise fail(GraphError, "svd", "jvp of full factors is not defined; use svd(x, full_matrices=False)")
    v, (rows, columns) = mT(F, vh), _beside(F, s)
    moved = F.matmul(F.matmul(mT(F, u), dx), v)
    empty = _zero(F, s, s)
    shrink = _beside(F, _inverse(F, s, empty))[0]
    together = _symmetric(F, moved) * _inverse(F, rows - columns, _zero(F, rows - columns, s))
    apart = _antisymmetric(F, moved) * _inverse(F, rows + columns, _zero(F, rows + columns, s))
    out_u, out_v = F.matmul(dx, v), F.matmul(mT(F, dx), u)
    du = F.matmul(u, together + apart) + (out_u - F.matmul(u, F.matmul(mT(F, u), out_u))) * shrink
    dv = F.matmul(v, together - apart) + (out_v - F.matmul(v, F.matmul(vh, out_v))) * shrink
    return du, F.where(empty, 0, _diagonal_of(F, moved)), mT(F, dv)


def _qr_vjp(F: Any, t: Any, out: Any, x_shape: Any, complete: bool) -> Any:
    """Walter and Lehmann 2018, for full column rank."""
    (q, r), (tq, tr) = out, t
    if complete and x_shape[-2] > (n := x_shape[-1]):
        if tq is not None:
            raise fail(GraphError, "qr", "columns of q beyond those of x have no derivative; use mode='reduced'")
        q, r = F.getitem(q, index=(..., slice(0, n))), F.getitem(r, index=(..., slice(0, n), slice(None)))
        tr = F.getitem(tr, index=(..., slice(0, n), slice(None)))
    tr = F.zeros_like(r) if tr is None else tr
    tq = F.zeros_like(q) if tq is None else tq
    inner = F.matmul(r, mT(F, tr)) - F.matmul(mT(F, tq), q)
    mirrored = F.tril(inner, k=0) + mT(F, F.tril(inner, k=-1))
    return _right_solve(F, tq + F.matmul(q, mirrored), mT(F, r))


def _qr_jvp(F: Any, ts: Any, out: Any, x: Any, complete: bool) -> Any:
    q, r = out
    if complete and x.shape[-2] > x.shape[-1]:
        raise fail(GraphError, "qr", "jvp of complete factors is not defined; use mode='reduced'")
    c = _right_solve(F, ts[0], r)
    b = F.matmul(mT(F, q), c)
    skew = F.tril(b, k=-1) - mT(F, F.tril(b, k=-1))
    return F.matmul(q, skew) + c - F.matmul(q, b), F.matmul(b - skew, r)


def _pinv_vjp(F: Any, t: Any, out: Any, x: Any, _rtol: Any) -> Any:
    """Golub and Pereyra 1973, eq. 4.12, transposed; right wherever the rank stays as it is."""
    pt, tt = mT(F, out), mT(F, t)
    inside = F.matmul(F.matmul(pt, t), pt)
    columns = F.matmul(F.matmul(tt, out), pt)
    rows = F.matmul(F.matmul(pt, out), tt)
    columns = columns - F.matmul(x, F.matmul(out, columns))
    return columns + rows - F.matmul(F.matmul(rows, out), x) - inside


def _pinv_jvp(F: Any, ts: Any, out: Any, x: Any, _rtol: Any) -> Any:
    dt, pt = mT(F, ts[0]), mT(F, out)
    inside = F.matmul(F.matmul(out, ts[0]), out)
    left = F.matmul(F.matmul(out, pt), dt)
    right = F.matmul(F.matmul(dt, pt), out)
    left = left - F.matmul(F.matmul(left, x), out)
    return left + right - F.matmul(out, F.matmul(x, right)) - inside


_inv_ = general("inv", _inv, _inv_vjp, jvp=lambda F, ts, out, _x: -F.matmul(F.matmul(out, ts[0]), out), floating=True)
_det_ = general(
    "det", _det, lambda F, t, out, x: _columns(F, t * out) * mT(F, F.inv(x)), floating=True,
    jvp=lambda F, ts, out, x: out * _total(F, F.inv(x) * mT(F, ts[0])),
)  # fmt: skip
_slogdet_ = general(
    "slogdet", _slogdet, _slogdet_vjp, nout=2, floating=True,
    jvp=lambda F, ts, out, x: (F.zeros_like(out[0]), _total(F, F.inv(x) * mT(F, ts[0]))),
)  # fmt: skip
_solve_ = general(
    "solve", _solve, _solve_vjp_x, lambda F, t, _out, x, _y: F.solve(mT(F, x), t), jvp=_solve_jvp,
    floating=True, promotes=True,
)  # fmt: skip
_pinv_ = general("pinv", _pinv, _pinv_vjp, None, jvp=_pinv_jvp, floating=True)
_matrix_rank_ = nondiff("matrix_rank", _matrix_rank, 2, attrs=True, promotes=False)
_gauge_ = nondiff("gauge", _gauge, 4, attrs=True, promotes=False)
_cholesky_ = general("cholesky", _cholesky, _cholesky_vjp, jvp=_cholesky_jvp, floating=True)
_eigh_ = general("eigh", _eigh, _eigh_vjp, jvp=_eigh_jvp, nout=2, floating=True)
_svd_ = general("svd", _svd, _svd_vjp, jvp=_svd_jvp, nout=3, floating=True)
_qr_ = general("qr", _qr, _qr_vjp, jvp=_qr_jvp, nout=2, floating=True)


def inv(x: Any) -> Any:
    """The inverse of each square matrix. Raises DomainError for a singular one."""
    return _inv_(_square(x, "inv"))


def det(x: Any) -> Any:
    """The determinant of each square matrix; its gradient needs an invertible one."""
    return _det_(_square(x, "det"))


def slogdet(x: Any) -> SlogdetResult:
    """(sign, log of the absolute value) of the determinant, without overflow."""
    return SlogdetResult(*_slogdet_(_square(x, "slogdet")))


def solve(x: Any, y: Any) -> Any:
    """z with x z = y, for square x (..., n, n) and y (n,) or (..., n, k). Raises DomainError for singular x."""
    x, y = _square(x, "solve"), operand(y, "solve")
    return _solve_(x, expand_dims(y, -1)).squeeze(-1) if y.ndim == 1 else _solve_(x, y)


def cholesky(x: Any, *, upper: bool = False) -> Any:
    """The triangular L with L L^T = x for symmetric positive definite x (of which the symmetric part is used).

    upper: its transpose instead (complex: the conjugate one). Raises DomainError if x is not positive definite.
    """
    lower = _cholesky_(_square(x, "cholesky"))
    return _adjoint(lower) if upper else lower


def eigh(x: Any) -> EighResult:
    """Eigenvalues in ascending order and orthonormal eigenvectors (columns) of the symmetric part of x.

    Where eigenvalues coincide, the gradient is that of functions which do not depend on the choice of their vectors (a
    projector on all of them, a sum over the values); on the CPU a GpugradWarning tells of another function.
    """
    return EighResult(*_eigh_(_square(x, "eigh")))


def eigvalsh(x: Any) -> Any:
    """Eigenvalues of the symmetric part of x, in ascending order."""
    return eigh(x)[0]


def svd(x: Any, *, full_matrices: bool = True) -> SVDResult:
    """(U, S, Vh) with x = U diag(S) Vh, S descending; U and Vh square, or without what meets no singular value.

    Where singular values coincide or vanish, the gradient is that of functions which do not depend on the choice of
    their vectors; on the CPU a GpugradWarning tells of another function. Of full factors the gradient of the columns
    of U (rows of Vh) that belong to no singular value is a GraphError, for they are not determined by x: pass
    full_matrices=False.
    """
    return SVDResult(*_svd_(_matrices(x, "svd"), full=full_matrices))


def svdvals(x: Any) -> Any:
    """Singular values, descending."""
    return svd(x, full_matrices=False)[1]


def qr(x: Any, *, mode: str = "reduced") -> QRResult:
    """(Q, R) with x = Q R, Q of orthonormal columns, R upper triangular (trapezoidal for a wide x).

    mode: 'reduced', or 'complete' for a square Q; its columns beyond those of x have no gradient (GraphError).
    Differentiable where the first columns of x are independent. Raises RangeError for another mode.
    """
    x = _matrices(x, "qr")
    if mode not in ("reduced", "complete"):
        raise fail(RangeError, "qr", f"mode is {mode!r}; expected 'reduced' or 'complete'")
    rows = x.shape[-2]
    if rows >= x.shape[-1]:
        return QRResult(*_qr_(x, complete=mode == "complete"))
    q, r = _qr_(x[..., :rows], complete=False)  # the first columns fix Q
    return QRResult(q, concat([r, matmul(_adjoint(q), x[..., rows:])], -1))


def pinv(x: Any, *, rtol: Any = None) -> Any:
    """The Moore-Penrose inverse of each matrix.

    rtol: singular values up to rtol times the largest count as zero; a number or one a matrix, by default
    max(rows, columns) times the rounding error. Differentiable where the rank does not change.
    """
    return _pinv_(_matrices(x, "pinv"), rtol)


def lstsq(a: Any, b: Any, *, rtol: Any = None) -> LstsqResult:
    """The x with the least |a x - b|, and of those the shortest: pinv(a) b.

    a: (..., m, n). b: (m,), or (..., m, k) for k right-hand sides. Returns the solution, the sums of squares
    |a x - b|^2 of each right-hand side, the rank of a and its singular values; rtol as in `pinv`. Differentiable
    where the rank does not change. Raises ShapeError if a and b have different numbers of rows.
    """
    a = _matrices(a, "lstsq")
    b = operand(b, "lstsq", a)
    if b.ndim == 0 or a.shape[-2] != b.shape[max(-2, -b.ndim)]:
        raise fail(ShapeError, "lstsq", f"({describe(a)}, {describe(b)}): the numbers of rows differ")
    x = matmul(pinv(a, rtol=rtol), b)
    off = elementwise.subtract(matmul(a, x), b)
    residuals = reduce.sum(elementwise.multiply(off, off), axis=-1 if b.ndim == 1 else -2)
    return LstsqResult(x, residuals, matrix_rank(a, rtol=rtol), svdvals(a))


def matrix_rank(x: Any, *, rtol: Any = None) -> Any:
    """The number (int64) of singular values above rtol times the largest; rtol as in `pinv`."""
    return _matrix_rank_(reduce.floating(_matrices(x, "matrix_rank")), rtol)
