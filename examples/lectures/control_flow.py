"""Loops and branches inside the differentiated program: the graph is what the program did, for this input."""

from math import isclose, sqrt

import gpugrad as gg


def leaf(value):
    return gg.tensor(value, dtype=gg.float64, requires_grad=True)


# A branch: the derivative of the side that was taken.
f = lambda x: x * x if x > 0 else -3 * x
assert gg.grad(f)(leaf(2.0)).item() == 4
assert gg.grad(f)(leaf(-2.0)).item() == -3


# A loop whose length depends on the data.
def doubled_until(x, bound=100.0):
    while x < bound:
        x = x * 2
    return x


assert gg.grad(doubled_until)(leaf(3.0)).item() == 64  # 3 * 2^6 = 192 is the first above 100
assert gg.grad(doubled_until)(leaf(60.0)).item() == 2


# Through an algorithm: Heron's square root, iterated until it stands still.
def heron(a):
    x = a
    while True:
        new = 0.5 * (x + a / x)
        if abs(new.item() - x.item()) < 1e-15 * x.item():
            return new
        x = new


for a in (0.3, 2.0, 50.0):
    assert isclose(heron(leaf(a)).item(), sqrt(a), rel_tol=1e-15)
    assert isclose(gg.grad(heron)(leaf(a)).item(), 0.5 / sqrt(a), rel_tol=1e-12)


# Recursion, and a list of intermediate results: Horner's scheme for a polynomial.
def horner(coefficients, x):
    return coefficients[0] if len(coefficients) == 1 else coefficients[0] + x * horner(coefficients[1:], x)


c = [leaf(v) for v in (1.0, -2.0, 0.5, 3.0)]
x = leaf(2.0)
horner(c, x).backward()
assert [t.grad.item() for t in c] == [1, 2, 4, 8]
assert x.grad.item() == -2 + 2 * 0.5 * 2 + 3 * 3 * 4


# Unrolled gradient descent, differentiated in its learning rate: d/deta (1 - eta)^5 w0.
def after_descent(eta):
    w = gg.tensor(4.0, dtype=gg.float64)
    for _ in range(5):
        w = w - eta * gg.grad(lambda v: 0.5 * v * v)(w)
    return w


assert isclose(after_descent(leaf(0.1)).item(), 4 * 0.9**5)
assert isclose(gg.grad(after_descent)(leaf(0.1)).item(), -5 * 4 * 0.9**4)

print("control flow: the derivative of Heron's square root at 2 is", gg.grad(heron)(leaf(2.0)).item())
