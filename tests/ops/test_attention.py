"""Scaled dot-product attention against its definition, in one piece and in float64; rotary embedding."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import DomainError, DTypeError, ShapeError
from gpugrad.nn.functional import rotary
from gpugrad.nn.functional import scaled_dot_product_attention as attend
from gpugrad.ops import attention

RNG = np.random.default_rng(0)


def normal(*shape, dtype="float64"):
    return RNG.normal(size=shape).astype(dtype)


def reference(q, k, v, mask=None, causal=False, scale=None):
    """By whole matrices; a row without keys is zero."""
    q, k, v = (a.astype("float64") for a in (q, k, v))
    s = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    if causal:
        s = np.where(np.tri(*s.shape[-2:], dtype=bool), s, -np.inf)
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isinf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ v


def values(out):
    return out.numpy() if isinstance(out, gg.Tensor) else out


@pytest.mark.parametrize("block", [1, 50, 1 << 18])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries, keys", [(1, 1), (7, 5), (5, 7), (33, 64)])
def test_matches_the_definition(monkeypatch, queries, keys, causal, block):
    """One query a tile, a few, all at once."""
    monkeypatch.setattr(attention, "BLOCK", block)
    monkeypatch.setattr(attention, "DIAGONAL", 4)
    q, k, v = normal(2, 3, queries, 4), normal(2, 3, keys, 4), normal(2, 3, keys, 6)
    for mask in (None, RNG.random((1, 3, queries, keys)) < 0.5, normal(2, 1, 1, keys), normal(keys)):
        given = None if mask is None else gg.tensor(mask)
        leaves = [gg.tensor(a, requires_grad=True) for a in (q, k, v)]
        out = attend(*leaves, given, is_causal=causal)
        np.testing.assert_allclose(values(out), reference(q, k, v, mask, causal), rtol=1e-12, atol=1e-12)
        t = normal(*out.shape)
        out.backward(gg.tensor(t))
        h, i = 1e-6, [normal(*a.shape) for a in (q, k, v)]
        plus, minus = (reference(*(a + s * d for a, d in zip((q, k, v), i)), mask, causal) for s in (h, -h))
        slope = sum(float((leaf.grad.numpy() * d).sum()) for leaf, d in zip(leaves, i))
        assert slope == pytest.approx(float(((plus - minus) * t).sum()) / (2 * h), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype, tol", [("float32", 2e-6), ("float16", 2e-3)])
def test_precision_and_dtype(dtype, tol):
    q, k, v = (normal(2, 2, 70, 16, dtype=dtype) for _ in range(3))
    leaves = [gg.tensor(a, requires_grad=True) for a in (q, k, v)]
    out = attend(*leaves)
    out.sum().backward()
    assert out.dtype == dtype
    assert {leaf.grad.dtype for leaf in leaves} == {np.dtype(dtype)}
    np.testing.assert_allclose(values(out), reference(q, k, v), atol=tol)


def test_causal_counts_from_the_start():
    """As PyTorch's is_causal: query i sees keys 0 to i also when there are more keys than queries, or fewer."""
    v = np.arange(1.0, 6)[:, None]
    q, k = np.zeros((3, 1)), np.zeros((5, 1))
    np.testing.assert_allclose(values(attend(*map(gg.tensor, (q, k, v)), is_causal=True))[:, 0], [1, 1.5, 2])
    out = attend(gg.tensor(np.zeros((3, 1))), gg.tensor(k[:2]), gg.tensor(v[:2]), is_causal=True)
    np.testing.assert_allclose(values(out)[:, 0], [1, 1.5, 1.5])


@pytest.mark.parametrize("second", [False, True])
def test_a_query_that_sees_nothing_gives_zeros(second):
    """Values and gradients, from the fused rule and from the composition."""
    q, k, v = (gg.tensor(normal(3, 4), requires_grad=True) for _ in range(3))
    mask = gg.tensor(np.array([[True, True, False], [False] * 3, [True] * 3]))
    out = attend(q, k, v, mask)
    assert not values(out)[1].any()
    grads = gg.gradients([(out * out).sum()], [q, k, v], create_graph=second)
    assert all(np.isfinite(values(g)).all() for g in grads)
    assert not values(grads[0])[1].any()
    if second:
        (deeper,) = gg.gradients([sum((g * g).sum() for g in grads)], [q])
        assert np.isfinite(values(deeper)).all()


@pytest.mark.parametrize("hidden", [np.nan, np.inf])
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_what_a_later_key_scores_does_not_matter(monkeypatch, hidden, block):
    monkeypatch.setattr(attention, "BLOCK", block)
    q, k, v = (normal(1, 2, 9, 4) for _ in range(3))
    k[:, :, 5] = hidden
    first = [gg.tensor(a[:, :, :5], requires_grad=True) for a in (q, k, v)]
    out = attend(*first, is_causal=True)
    np.testing.assert_allclose(values(attend(q, k, v, is_causal=True))[:, :, :5], values(out), rtol=1e-14)
    np.testing.assert_allclose(values(out), reference(*(a.numpy() for a in first), causal=True), rtol=1e-12)


def test_infinite_float_mask_hides_like_a_boolean_one():
    q, k, v = normal(2, 5, 3), normal(2, 6, 3), normal(2, 6, 3)
    seen = RNG.random((5, 6)) < 0.5
    seen[2] = False
    hidden = np.where(seen, 0.0, -np.inf)
    given = [gg.tensor(a) for a in (q, k, v)]
    for mask in (gg.tensor(hidden), gg.tensor(hidden, requires_grad=True)):
        np.testing.assert_allclose(values(attend(*given, mask)), reference(q, k, v, seen), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_gradient_in_a_float_mask(causal):
    q, k, v, mask = (gg.tensor(normal(*s)) for s in ((2, 3, 4), (2, 5, 4), (2, 5, 2), (3, 5)))
    assert gg.gradcheck(lambda q, k, v, m: attend(q, k, v, m, is_causal=causal), [q, k, v, mask])


def test_first_and_second_derivatives():
    q, k, v = (gg.tensor(normal(*s)) for s in ((1, 2, 4, 3), (1, 2, 5, 3), (1, 2, 5, 2)))
    mask = gg.tensor(RNG.random((4, 5)) < 0.8)
    for options in ({}, {"attn_mask": mask}, {"is_causal": True, "scale": 0.3}):
        assert gg.gradcheck(lambda q, k, v, o=options: attend(q, k, v, **o), [q, k, v])
        assert gg.gradgradcheck(lambda q, k, v, o=options: attend(q, k, v, **o), [q, k, v])


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 3, 4)])
def test_leading_axes(lead):
    q, k, v = normal(*lead, 4, 3), normal(*lead, 5, 3), normal(*lead, 5, 2)
    given = [gg.tensor(a) for a in (q, k, v)]
    np.testing.assert_allclose(values(attend(*given)), reference(q, k, v), rtol=1e-12, atol=1e-12)
    for shape in ((4, 5), (5,), (1, 1), (*lead, 1, 5), (*lead[:-1], *(1,) * bool(lead), 4, 5)):
        mask = RNG.random(shape) < 0.7
        out = attend(*given, gg.tensor(mask))
        np.testing.assert_allclose(values(out), reference(q, k, v, mask), rtol=1e-12, atol=1e-12)


def test_leading_axes_broadcast():
    q, k, v = normal(2, 3, 4, 5), normal(3, 6, 5), normal(2, 1, 6, 5)
    leaves = [gg.tensor(a, requires_grad=True) for a in (q, k, v)]
    out = attend(*leaves)
    np.testing.assert_allclose(values(out), reference(q, k, v), rtol=1e-12, atol=1e-12)
    out.sum().backward()
    assert [leaf.grad.shape for leaf in leaves] == [q.shape, k.shape, v.shape]


def test_shared_key_heads():
    q, k, v = normal(2, 6, 4, 3), normal(2, 2, 5, 3), normal(2, 2, 5, 3)
    given = [gg.tensor(a) for a in (q, k, v)]
    want = reference(q, k.repeat(3, 1), v.repeat(3, 1))
    np.testing.assert_allclose(values(attend(*given, enable_gqa=True)), want, rtol=1e-12, atol=1e-12)
    assert gg.gradcheck(lambda q, k, v: attend(q, k, v, enable_gqa=True, is_causal=True), given)
    with pytest.raises(ShapeError, match="enable_gqa=True"):
        attend(*given)


def test_dropout_of_the_weights():
    q, k, v = (gg.tensor(normal(2, 40, 4), requires_grad=True) for _ in range(3))
    one, other = (attend(q, k, v, dropout_p=0.5, generator=gg.random.Generator(3)) for _ in range(2))
    np.testing.assert_array_equal(values(one), values(other))
    assert np.abs(values(one) - values(attend(q, k, v))).max() > 0.01
    assert not values(attend(q, k, v, dropout_p=1.0)).any()
    ones = gg.ones((2, 40, 1))
    share = np.mean([values(attend(q, k, ones.to(dtype=q.dtype), dropout_p=0.2)).mean() for _ in range(20)])
    assert share == pytest.approx(1.0, abs=0.05)


def test_nothing_to_attend_to():
    out = attend(gg.ones((2, 3, 4)), gg.ones((2, 0, 4)), gg.ones((2, 0, 5)))
    assert out.shape == (2, 3, 5)
    assert not values(out).any()
    assert attend(gg.ones((0, 3, 4)), gg.ones((0, 2, 4)), gg.ones((0, 2, 4))).shape == (0, 3, 4)
    assert attend(gg.ones((1, 0, 4)), gg.ones((1, 2, 4)), gg.ones((1, 2, 4))).shape == (1, 0, 4)


def test_scores_never_exist_as_a_whole():
    """2048 x 2048 scores are 17 MB in float32; forward and backward stay far below."""
    q, k, v = (gg.tensor(normal(1, 1, 2048, 8, dtype="float32"), requires_grad=True) for _ in range(3))
    tracemalloc.start()
    attend(q, k, v, is_causal=True).sum().backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6


def test_errors_name_shapes():
    q, k = gg.ones((2, 3, 4)), gg.ones((2, 5, 4))
    with pytest.raises(ShapeError, match=r"\(\.\.\., Tq, D\)"):
        attend(q, gg.ones((2, 5, 3)), k)
    with pytest.raises(ShapeError, match=r"expected a mask that broadcasts to \[2, 3, 5\]"):
        attend(q, k, k, gg.ones((4, 3, 5)))
    with pytest.raises(ShapeError, match="leading axes"):
        attend(gg.ones((3, 3, 4)), k, k)
    with pytest.raises(DTypeError, match="one floating-point type"):
        attend(q, k, k.to(dtype=gg.float64))
    with pytest.raises(DTypeError, match="booleans or floats"):
        attend(q, k, k, gg.ones((3, 5), dtype=gg.int64))
    with pytest.raises(DomainError, match="dropout_p"):
        attend(q, k, k, dropout_p=1.5)


# --- rotary -------------------------------------------------------------------------------------------------------


def angles(positions, half):
    a = positions[:, None] * 10000.0 ** (-np.arange(half) / half)
    return np.cos(a), np.sin(a)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs(interleaved):
    x = normal(2, 5, 6)
    cos, sin = angles(np.arange(5.0), 3)
    pairs = x.reshape(2, 5, 3, 2) if interleaved else x.reshape(2, 5, 2, 3).swapaxes(2, 3)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * (cos + 1j * sin)
    want = np.stack([turned.real, turned.imag], -1 if interleaved else -2).reshape(2, 5, 6)
    given = [gg.tensor(a) for a in (x, cos, sin)]
    np.testing.assert_allclose(values(rotary(*given, interleaved=interleaved)), want, rtol=1e-12)
    assert gg.gradcheck(lambda x: rotary(x, *given[1:], interleaved=interleaved), given[:1])


def test_rotary_products_depend_on_distance_alone():
    q, k = normal(1, 8), normal(1, 8)

    def product(i, j):
        a, b = (
            values(rotary(gg.tensor(x), *map(gg.tensor, angles(np.array([float(n)]), 4)))) for x, n in ((q, i), (k, j))
        )
        return float((a * b).sum())

    assert product(3, 1) == pytest.approx(product(12, 10), rel=1e-12)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3


def test_rotary_errors():
    with pytest.raises(ShapeError, match=r"\(T, D / 2\)"):
        rotary(gg.ones((3, 5)), gg.ones((3, 2)), gg.ones((3, 2)))
    with pytest.raises(DTypeError, match="floating-point"):
        rotary(gg.ones((3, 4), dtype=gg.int64), gg.ones((3, 2)), gg.ones((3, 2)))
