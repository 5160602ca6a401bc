"""NumPy's products, filters, polynomials, linear algebra and transforms on Tensors; see `numpy_functions`."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.errors import ShapeError, describe, fail
from gpugrad.layered import Layered
from gpugrad.numpy_functions import floating, together
from gpugrad.ops.conv import conv1d
from gpugrad.protocols import Call, public
from gpugrad.tensor import Tensor

# --- along a line


def _np_interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None) -> Any:
    """The values at x of the line through the points (xp, fp), differentiable in all three; xp is sorted.

    x: any shape; xp, fp: vectors of one length. Before and after the points: left and right, by default the first and
    the last value. Where x is a point, the slope is that of what comes after it.
    """
    x, xp, fp = map(floating, together([x, xp, fp]))
    if xp.ndim != 1 or xp.shape != fp.shape or not xp.size:
        given = f"points {describe(xp)}, values {describe(fp)}"
        raise fail(ShapeError, "numpy.interp", f"{given}; expected as many of one as of the other")
    i = gg.clip(gg.searchsorted(xp, x.detach(), "right") - 1, 0, max(xp.size - 2, 0))
    j = gg.minimum(i + 1, xp.size - 1)
    x0, x1, y0, y1 = gg.take(xp, i), gg.take(xp, j), gg.take(fp, i), gg.take(fp, j)
    inside = gg.where(x == x1, y1, y0 + (y1 - y0) / gg.where(x1 == x0, 1, x1 - x0) * (x - x0))
    under = gg.where(x < xp[0], fp[0] if left is None else left, inside)
    return gg.where(x > xp[-1], fp[-1] if right is None else right, under)


def _np_convolve(a: Any, v: Any, mode: str = "full") -> Any:
    """The discrete convolution of two vectors: sums of a[i] v[n - i].

    mode: 'full' has every overlap, 'same' as many as the longer vector, 'valid' the complete ones. Raises ShapeError
    for another mode or shape.
    """
    a, v = gg.asarray(a), gg.asarray(v)
    a, v = (a, v) if a.size >= v.size else (v, a)
    if mode not in ("full", "same", "valid") or a.ndim != 1 or v.ndim != 1:
        raise fail(ShapeError, "numpy.convolve", f"{describe(a)}, {describe(v)}, mode={mode!r}; expected two vectors")
    whole = conv1d(a[None, None], gg.flip(v)[None, None], padding=0 if mode == "valid" else v.size - 1)[0, 0]
    start = (v.size - 1) // 2
    return whole[start : start + a.size] if mode == "same" else whole


def _np_correlate(a: Any, v: Any, mode: str = "valid") -> Any:
    """The cross-correlation of two real vectors: sums of a[n + i] v[i]; modes as in `convolve`."""
    if np.size(a) < np.size(v):
        return gg.flip(_np_correlate(v, a, mode))
    return _np_convolve(a, gg.flip(gg.asarray(v)), mode)


# --- products and linear algebra


def _np_inner(a: Any, b: Any) -> Any:
    a, b = together([a, b])
    return a * b if not (a.ndim and b.ndim) else gg.tensordot(a, b, axes=((-1,), (-1,)))


def _np_vdot(a: Any, b: Any) -> Any:
    a, b = together([a, b])
    return gg.vecdot(gg.flatten(a), gg.flatten(b))


def _np_kron(a: Any, b: Any) -> Any:
    return gg.linalg.kron(a, b)


def _np_cross(a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: Any = None) -> Any:
    axisa, axisb, axisc = (axisa, axisb, axisc) if axis is None else (axis,) * 3
    a, b = together([a, b])
    return gg.moveaxis(gg.linalg.cross(gg.moveaxis(a, axisa, -1), gg.moveaxis(b, axisb, -1)), -1, axisc)


def _np_einsum(subscripts: str, *operands: Any) -> Any:
    return gg.einsum(subscripts, *together(operands))


# --- polynomials, coefficients of the highest power first


def coefficients(*ps: Any) -> list[Any]:
    """Coefficients as vectors."""
    return [gg.reshape(p, (-1,)) for p in together(ps)]


def _np_polyval(p: Any, x: Any) -> Any:
    """The polynomial with coefficients p at x, by Horner's rule."""
    return functools.reduce(lambda y, c: y * x + c, p, gg.zeros_like(x) if isinstance(x, Tensor) else 0 * x)


def _np_polyadd(a1: Any, a2: Any) -> Any:
    """The sum of two polynomials."""
    a, b = coefficients(a1, a2)
    a, b = (a, b) if a.size >= b.size else (b, a)
    return a + gg.pad(b, [(a.size - b.size, 0)])


def _np_polysub(a1: Any, a2: Any) -> Any:
    """The difference of two polynomials."""
    a, b = coefficients(a1, a2)
    return _np_polyadd(a, -b)


def _np_polymul(a1: Any, a2: Any) -> Any:
    """The product of two polynomials, without the zeros in front of either."""
    return _np_convolve(*(leading(p, 0.0) for p in coefficients(a1, a2)))


def leading(p: Any, least: float) -> Any:
    """Without the leading coefficients that are not above `least`, but for the last one."""
    here = np.flatnonzero(np.abs(p.detach().numpy()) > least)
    return p[int(here[0]) :] if len(here) else p[-1:]


def _np_polydiv(u: Any, v: Any) -> Any:
    """Quotient and remainder of two polynomials."""
    rest, v = map(floating, coefficients(u, v))
    found = []
    for _ in range(rest.size - v.size + 1):
        found.append(rest[0] / v[0])
        rest = rest[1:] - gg.pad(found[-1] * v[1:], [(0, rest.size - v.size)])
    if not rest.size:  # division by a number
        rest = gg.zeros((1,), dtype=rest.dtype, device=rest.device)
    return gg.stack(found) if found else gg.zeros_like(rest[:1]), leading(rest, 1e-8)


def _np_polyder(p: Any, m: int = 1) -> Any:
    """The m-th derivative of a polynomial."""
    (c,) = coefficients(p)
    for _ in range(m):
        c = c[:-1] * gg.asarray(np.arange(c.size - 1, 0, -1), dtype=c.dtype, device=c.device)
    return c


def _np_polyint(p: Any, m: int = 1, k: Any = None) -> Any:
    """The m-th antiderivative of a polynomial, with the constants k of integration, 0 by default."""
    c = floating(coefficients(p)[0])
    constants = [0.0] * m if k is None else [k] * m if np.ndim(k) == 0 else k
    for constant in constants:
        powers = gg.asarray(np.arange(c.size, 0, -1), dtype=c.dtype, device=c.device)
        c = gg.concat([c / powers, gg.reshape(together([constant, c])[0], (1,))])
    return c


def _np_polyfit(x: Any, y: Any, deg: int, rcond: Any = None, full: bool = False, w: Any = None) -> Any:
    """The polynomial of a degree that is nearest to the points (x, y) by least squares, weighted by w."""
    x, y = map(floating, together([x, y]))
    if full:
        raise fail(ShapeError, "numpy.polyfit", "full=True is not supported; gpugrad.linalg.lstsq tells the rest")
    left, right = _np_vander(x, deg + 1), y
    if w is not None:
        w = together([w, x])[0]
        left, right = left * w[:, None], right * (w if y.ndim == 1 else w[:, None])
    scale = gg.sqrt(gg.sum(left * left, axis=0))
    rtol = x.size * gg.finfo(x.dtype).eps if rcond is None else rcond
    found = gg.linalg.lstsq(left / scale, right, rtol=rtol).solution
    return found / (scale if y.ndim == 1 else scale[:, None])


def _np_poly(seq_of_zeros: Any) -> Any:
    """The coefficients of the polynomial with the given zeros."""
    c = gg.ones((1,), dtype=floating(seq_of_zeros).dtype)
    for zero in gg.unstack(floating(seq_of_zeros)):
        c = gg.pad(c, [(0, 1)]) - gg.pad(c * zero, [(1, 0)])
    return c


def _np_vander(x: Any, N: Any = None, increasing: bool = False) -> Any:
    powers = np.arange(len(x) if N is None else N)
    return gg.stack([x ** int(k) for k in (powers if increasing else powers[::-1])], axis=1)


# --- linear algebra


def _linalg_norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """A norm of vectors (over one axis, or of all elements) or of matrices (over two).

    ord: None for the root of the summed squares; of vectors a power, inf, -inf or 0; of matrices what `matrix_norm`
    takes. Raises ShapeError for more than two axes.
    """
    x = gg.asarray(x)
    if ord is None or isinstance(axis, (int, np.integer)) or (axis is None and x.ndim == 1):
        return gg.linalg.vector_norm(x, axis=axis, keepdims=keepdims, ord=2 if ord is None else ord)
    axis = (0, 1) if axis is None and x.ndim == 2 else axis
    if not isinstance(axis, tuple) or len(axis) != 2:
        raise fail(
            ShapeError, "numpy.linalg.norm", f"{describe(x)}, axis={axis}, ord={ord!r}; expected one or two axes"
        )
    found = gg.linalg.matrix_norm(gg.moveaxis(x, axis, (-2, -1)), ord=ord)
    return gg.expand_dims(found, tuple(i % x.ndim for i in axis)) if keepdims else found


def _linalg_svd(a: Any, full_matrices: bool = True, compute_uv: bool = True) -> Any:
    return gg.linalg.svd(a, full_matrices=full_matrices) if compute_uv else gg.linalg.svdvals(a)


def _linalg_qr(a: Any, mode: str = "reduced") -> Any:
    return gg.linalg.qr(a)[1] if mode == "r" else gg.linalg.qr(a, mode=mode)


def _linalg_pinv(a: Any, rcond: Any = None, rtol: Any = None) -> Any:
    return gg.linalg.pinv(a, rtol=rcond if rtol is None else rtol)


def _linalg_cond(x: Any, p: Any = None) -> Any:
    """The condition number norm(x, p) norm(inv(x), p); by default the largest singular value over the smallest."""
    if p in (None, 2, -2):
        s = gg.linalg.svdvals(x)
        return s[..., -1] / s[..., 0] if p == -2 else s[..., 0] / s[..., -1]
    return gg.linalg.matrix_norm(x, ord=p) * gg.linalg.matrix_norm(gg.linalg.inv(x), ord=p)


def _linalg_multi_dot(arrays: Any) -> Any:
    """The product of matrices, in the order of the fewest multiplications; the first and the last may be vectors.

    Raises ShapeError for fewer than two, or lengths that do not fit.
    """
    xs = together(list(arrays))
    if len(xs) < 2:
        raise fail(ShapeError, "numpy.linalg.multi_dot", f"{len(xs)} arrays; expected two or more")
    sizes = [x.shape[0] if x.ndim == 2 else 1 if not i else x.shape[0] for i, x in enumerate(xs)]
    sizes.append(xs[-1].shape[1] if xs[-1].ndim == 2 else 1)

    @functools.cache
    def best(i: int, j: int) -> tuple[int, int]:
        """The cost of the product of matrices i to j, and after which of them it is cut."""
        cuts = [
            (best(i, k)[0] + best(k + 1, j)[0] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j)
        ]  # fmt: skip
        return min(cuts, default=(0, i))

    def product(i: int, j: int) -> Any:
        k = best(i, j)[1]
        return xs[i] if i == j else gg.matmul(product(i, k), product(k + 1, j))

    return product(0, len(xs) - 1)


def _linalg_tensorinv(a: Any, ind: int = 2) -> Any:
    """The inverse of `tensordot` with a over all but its first `ind` axes."""
    x = gg.asarray(a)
    rows, columns = x.shape[:ind], x.shape[ind:]
    if ind < 1 or np.prod(rows) != np.prod(columns):
        raise fail(ShapeError, "numpy.linalg.tensorinv", f"{describe(x)}, ind={ind}: not a square matrix of two parts")
    return gg.reshape(gg.linalg.inv(gg.reshape(x, (int(np.prod(rows)), -1))), (*columns, *rows))


def _linalg_tensorsolve(a: Any, b: Any, axes: Any = None) -> Any:
    """The x with tensordot(a, x, x.ndim) = b; `axes` of a are moved to the end first."""
    a, b = together([a, b])
    if axes is not None:
        a = gg.moveaxis(a, tuple(axes), tuple(range(a.ndim - len(axes), a.ndim)))
    shape = a.shape[b.ndim :]
    if a.shape[: b.ndim] != b.shape or np.prod(shape) != b.size:
        raise fail(ShapeError, "numpy.linalg.tensorsolve", f"{describe(a)} is no square matrix beside {describe(b)}")
    return gg.reshape(gg.linalg.solve(gg.reshape(a, (b.size, b.size)), gg.flatten(b)), shape)


# Numerators of the diagonal Pade approximants of exp: b[k] = (2m - k)! m! / ((2m)! (m - k)! k!), and the largest 1-norm
# at which each is as good as the rounding in float64 (Higham, The scaling and squaring method, 2005, table 2.3).
PADE = {3: 1.495585217958292e-2, 5: 2.539398330063230e-1, 7: 9.504178996162932e-1, 9: 2.097847961257068e0,
        13: 5.371920351148152e0}  # fmt: skip


def pade(m: int) -> list[float]:
    """The coefficients of the numerator; those of the denominator have alternating signs."""
    c = [1.0]
    for k in range(1, m + 1):
        c.append(c[-1] * (m - k + 1) / (k * (2 * m - k + 1)))
    return c


def _linalg_expm(a: Any) -> Any:
    """The exponential of square matrices (..., n, n), by scaling, a Pade approximant and squaring (Higham 2005).

    Waits for the device, to learn the largest norm of them. Raises ShapeError for other shapes.
    """
    x = floating(a)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise fail(ShapeError, "linalg.expm", f"{describe(x)}: expected square matrices")
    values = x.data
    while isinstance(values, Layered) and not values.level.in_place:  # all examples of vmap at once
        values = values.inner
    norm = float(gg.max(gg.linalg.matrix_norm(gg.astype(Tensor(values), "float64"), ord=1))) if x.size else 0.0
    if not math.isfinite(norm):
        return x * math.nan
    m = next((m for m, bound in PADE.items() if norm <= bound), 13)
    squarings = max(0, math.ceil(math.log2(norm / PADE[13]))) if norm > PADE[13] else 0
    x = x * 0.5**squarings
    one = gg.broadcast_to(gg.eye(x.shape[-1], dtype=x.dtype, device=x.device), x.shape)
    c, square = pade(m), x @ x
    even, odd, power = c[0] * one, c[1] * one, one
    for k in range(2, m + 1, 2):
        power = power @ square if k > 2 else square
        even, odd = even + c[k] * power, odd + c[k + 1] * power
    odd = x @ odd
    found = gg.linalg.solve(even - odd, even + odd)
    for _ in range(squarings):
        found = found @ found
    return found


def several(name: str) -> Call:
    """A two-dimensional transform: the one over several axes, over the last two."""

    def transform(a: Any, s: Any = None, axes: Any = (-2, -1), norm: Any = None) -> Any:
        return public(f"fft.{name}")(a, s=s, axes=axes, norm=norm or "backward")

    return transform


_fft_fft2, _fft_ifft2, _fft_rfft2, _fft_irfft2 = map(several, ("fftn", "ifftn", "rfftn", "irfftn"))


def _linalg_lstsq(a: Any, b: Any, rcond: Any = None) -> tuple[Any, Any, int, Any]:
    """Residuals are empty unless the columns are independent and fewer than the rows; the rank is a number."""
    a, b = gg.asarray(a), gg.asarray(b)
    x, off, rank, values = gg.linalg.lstsq(a, b, rtol=rcond)
    known = int(rank) == a.shape[1] < a.shape[0]
    off = (off if b.ndim > 1 else gg.reshape(off, (1,))) if known else gg.zeros((0,), dtype=x.dtype, device=x.device)
    return x, off, int(rank), values
