"""The lecture's units, against the forward and backward pass written out by hand in NumPy."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import losses, nn
from gpugrad.nn.units import add, affine, decay, forward, logistic, loss, model, relu

rng = np.random.default_rng(3)
m, n, hidden, k = 7, 4, 6, 3
X = rng.normal(size=(m, n))
T = np.eye(k)[rng.integers(0, k, size=m)]
W1, b1 = rng.normal(size=(n, hidden)), rng.normal(size=hidden)
W2, b2 = rng.normal(size=(hidden, k)), rng.normal(size=k)
RATE = 0.3


def close(got, want):
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-14)


def by_hand():
    """The two-layer network with decay, forward and backward, line by line."""
    A1 = X @ W1 + b1
    H = np.maximum(0, A1)
    A2 = H @ W2 + b2
    E = np.exp(A2 - A2.max(axis=1, keepdims=True))
    Y = E / E.sum(axis=1, keepdims=True)
    data = -np.mean(np.sum(T * np.log(Y), axis=1))
    J = data + RATE / 2 * (np.sum(W1**2) + np.sum(W2**2))
    dA2 = (Y - T) / m
    dW2, db2, dH = H.T @ dA2 + RATE * W2, dA2.sum(axis=0), dA2 @ W2.T
    dA1 = dH * (A1 > 0)
    dW1, db1, dX = X.T @ dA1 + RATE * W1, dA1.sum(axis=0), dA1 @ W1.T
    return J, dX, [(dW1, db1), (dW2, db2)]


def test_affine_returns_its_backward():
    dA = rng.normal(size=(m, hidden))
    A, backward = forward(affine, X, (W1, b1))
    close(A, X @ W1 + b1)
    dX, (dW, db) = backward(gg.tensor(dA))
    close(dX, dA @ W1.T)
    close(dW, X.T @ dA)
    close(db, dA.sum(axis=0))
    close(backward(gg.tensor(2 * dA))[0], 2 * dA @ W1.T)  # again, from the same forward
    assert not A.requires_grad


def test_logistic_is_softmax_and_mean_cross_entropy():
    A = rng.normal(size=(m, k))
    L, backward = forward(lambda A: logistic(A, gg.tensor(T)), A)
    Y = np.exp(A) / np.exp(A).sum(axis=1, keepdims=True)
    close(L, -np.mean(np.sum(T * np.log(Y), axis=1)))
    close(backward(), (Y - T) / m)


def test_relu_decay_and_add():
    A, dA = rng.normal(size=(2, m, k))
    out, backward = forward(relu, A)
    close(out, np.maximum(0, A))
    close(backward(gg.tensor(dA)), dA * (A > 0))
    out, backward = forward(lambda Ws: decay(Ws, RATE), [W1, W2])
    close(out, RATE / 2 * (np.sum(W1**2) + np.sum(W2**2)))
    dW1, dW2 = backward()
    close(dW1, RATE * W1)
    close(dW2, RATE * W2)
    close(decay(gg.tensor(W1), RATE), RATE / 2 * np.sum(W1**2))
    out, backward = forward(add, X, 2 * X, 3 * X)
    close(out, 6 * X)
    for g in backward(gg.tensor(X)):
        close(g, X)


def test_two_layers_with_decay_equal_the_lines_written_by_hand():
    network = loss(model(affine, relu, affine), RATE)
    params = [(W1, b1), (W2, b2)]
    J, backward = forward(lambda X, params: network(X, gg.tensor(T), params), X, params)
    want, dX, grads = by_hand()
    close(J, want)
    got_dX, got = backward()
    close(got_dX, dX)
    for (dW, db), (want_W, want_b) in zip(got, grads):
        close(dW, want_W)
        close(db, want_b)


def test_the_blocks_equal_sequential():
    net = nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, k)).to(dtype=gg.float64)
    state = {"0.weight": W1.T, "0.bias": b1, "2.weight": W2.T, "2.bias": b2}
    net.load_state_dict(state)
    J = losses.categorical_cross_entropy_with_logits(net(gg.tensor(X)), gg.tensor(T))
    J = J + decay([net[0].weight, net[2].weight], RATE)
    J.backward()
    want, _, grads = by_hand()
    close(J, want)
    for layer, (dW, db) in zip((net[0], net[2]), grads):
        close(layer.weight.grad, dW.T)
        close(layer.bias.grad, db)


def test_blocks_nest_and_stay_on_the_tape():
    inner = model(affine, relu)
    outer = loss(model(inner, affine))
    params = [[(gg.tensor(W1), gg.tensor(b1))], (gg.tensor(W2), gg.tensor(b2))]
    close(outer(gg.tensor(X), gg.tensor(T), params), by_hand()[0] - RATE / 2 * (np.sum(W1**2) + np.sum(W2**2)))
    grads = gg.grad(lambda p: outer(gg.tensor(X), gg.tensor(T), p))(params)
    close(grads[1][0], by_hand()[2][1][0] - RATE * W2)
    assert gg.gradcheck(lambda a: logistic(a, gg.tensor(T)), [gg.tensor(rng.normal(size=(m, k)))])
    with pytest.raises(gg.errors.ShapeError):
        affine(gg.tensor(X), (gg.tensor(W2), gg.tensor(b2)))
