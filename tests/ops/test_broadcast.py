"""Broadcasting: 500 random pairs of shapes, gradients of add, multiply and divide against numeric ones."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.errors import ShapeError

H = 1e-3


def pair(rng):
    """Two shapes that broadcast together: 0-d, length 1, empty and missing axes all occur."""
    full = [int(rng.choice([0, 1, 2, 3], p=[0.06, 0.2, 0.37, 0.37])) for _ in range(rng.integers(0, 4))]
    shapes = []
    for _ in range(2):
        kept = full[int(rng.integers(0, len(full) + 1)) :] if rng.random() < 0.4 else full
        shapes.append(tuple(1 if rng.random() < 0.3 else n for n in kept))
    return shapes


def numeric(f, x, y, w):
    """Gradient of sum(w f(x, y)) in x. f is elementwise, so all of x is varied at once and the slopes, taken element
    by element of the output, are summed back over the axes that x was stretched along."""
    slope = (8 * (f(x + H, y) - f(x - H, y)) - (f(x + 2 * H, y) - f(x - 2 * H, y))) / (12 * H) * w
    lead = slope.ndim - x.ndim
    slope = slope.sum(tuple(range(lead)))
    return slope.sum(tuple(i for i, n in enumerate(x.shape) if n == 1), keepdims=True).reshape(x.shape)


@pytest.mark.parametrize("name", ["add", "multiply", "divide"])
def test_gradients_of_500_shape_pairs(name):
    rng = np.random.default_rng(20)
    f, g = getattr(np, name), getattr(gg, name)
    kinds = set()
    for _ in range(500):
        a, b = pair(rng)
        x, y = rng.uniform(0.5, 2.0, a), rng.uniform(0.5, 2.0, b)
        out = f(x, y)
        w = rng.normal(size=out.shape)
        tx, ty = gg.tensor(x, requires_grad=True), gg.tensor(y, requires_grad=True)
        result = g(tx, ty)
        np.testing.assert_array_equal(result.numpy(), out)
        result.backward(gg.tensor(w))
        for t, want in ((tx, numeric(f, x, y, w)), (ty, numeric(lambda q, p: f(p, q), y, x, w))):
            assert t.grad.shape == t.shape
            np.testing.assert_allclose(t.grad.numpy(), want, rtol=1e-7, atol=1e-8)
        kinds |= {"0-d"} if () in (a, b) else set()
        kinds |= {"empty"} if out.size == 0 else set()
        kinds |= {"stretched"} if a != b else set()
    assert kinds == {"0-d", "empty", "stretched"}


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ShapeError) as caught:
        gg.ones((2, 3)) + gg.ones((4,))
    assert "[add]" in str(caught.value)
    assert "float32[2, 3]" in str(caught.value)
    assert "float32[4]" in str(caught.value)
    assert "test_broadcast.py:" in str(caught.value)
