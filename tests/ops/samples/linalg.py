"""Samples for gpugrad/ops/linalg.py. Matrices to be inverted are kept well conditioned, spectra well apart.

They come from a generator of their own: LAPACK chooses the signs of singular vectors, and a sample at a point where
the choice flips has no derivative.
"""

import numpy as np

from . import S

_rng = np.random.default_rng(5)


def normal(*shape: int):
    """Standard normal float64."""
    return _rng.normal(size=shape)


def regular(*shape: int):
    """Random square matrices with a heavy diagonal."""
    return normal(*shape) + 3 * np.eye(shape[-1])


def definite(n: int):
    """A symmetric positive definite matrix with eigenvalues about 1, 2, ..., n."""
    q, _ = np.linalg.qr(normal(n, n))
    return q * (np.arange(n) + 1.0) @ q.T


def spread(m: int, n: int):
    """An m by n matrix with singular values 1, 2, ..."""
    k = min(m, n)
    u, v = np.linalg.qr(normal(m, m))[0][:, :k], np.linalg.qr(normal(n, n))[0][:, :k]
    return u * (np.arange(k) + 1.0) @ v.T


def stacked(count: int, make, *shape: int):
    """A stack of matrices of one kind: as many as no axis of theirs is long."""
    return np.stack([make(*shape) for _ in range(count)])


SAMPLES = {
    "gauge": [S(np.eye(3) > 0, normal(3, 3), 1e9 * normal(3, 3), None, of="svd")],
    "matmul": [
        S(normal(2, 3), normal(3, 4)),
        S(normal(3), normal(3)),
        S(normal(3), normal(3, 2)),
        S(normal(2, 3), normal(3)),
        S(normal(2, 4, 3), normal(3, 2)),
        S(normal(2, 3), normal(4, 3, 2)),
        S(normal(2, 1, 2, 3), normal(3, 3, 2)),
        S(normal(3), normal(4, 3, 2)),
        S(normal(2, 2, 3), normal(3)),
        S(normal(0, 3), normal(3, 2)),
        S(normal(2, 0), normal(0, 2)),
        S(normal(2, 0, 3), normal(3, 2)),
        S(normal(2, 1, 2, 3), normal(3)),
    ],
    "affine": [
        S(normal(2, 3), normal(4, 3), normal(4)),
        S(normal(3), normal(4, 3), normal(4)),
        S(normal(2, 1, 3), normal(1, 3), normal(1)),
        S(normal(0, 3), normal(4, 3), normal(4)),
        S(normal(2, 0), normal(4, 0), normal(4)),
    ],
    "diagonal": [S(normal(3, 4), offset=1, axis1=0, axis2=1), S(normal(3, 2, 4), offset=-1, axis1=2, axis2=0)],
    "undiagonal": [
        S(normal(3), offset=1, axis1=0, axis2=1, shape=(3, 4)),
        S(normal(2, 2), offset=-1, axis1=2, axis2=0, shape=(2, 2, 3)),
    ],
    "inv": [S(regular(3, 3)), S(regular(2, 2, 2))],
    "det": [S(regular(3, 3)), S(regular(2, 2, 2))],
    "slogdet": [S(regular(3, 3)), S(regular(2, 2, 2))],
    "solve": [S(regular(3, 3), normal(3, 2)), S(regular(2, 3, 3), normal(3, 1))],
    "cholesky": [S(definite(3)), S(np.stack([definite(2), definite(2)]))],
    "eigh": [S(definite(3)), S(stacked(3, definite, 2))],
    "svd": [
        S(spread(3, 3), full=False),
        S(spread(4, 2), full=False),
        S(spread(2, 4), full=False),
        S(spread(3, 3), full=True),
        S(stacked(4, spread, 3, 2), full=False),
        S(
            stacked(1, spread, 4, 2), full=True, outputs=(1, 2), second=False
        ),  # the rule reads undetermined columns of u
        S(stacked(1, spread, 2, 4), full=True, outputs=(0, 1), second=False),
    ],
    "qr": [
        S(regular(3, 3), complete=False),
        S(normal(4, 2), complete=False),
        S(regular(3, 3), complete=True),
        S(normal(3, 4, 2), complete=True, outputs=(1,), second=False),  # likewise of q
    ],
    "pinv": [
        S(spread(3, 3), None),
        S(spread(4, 2), None),
        S(spread(2, 4), None),
        S(np.stack([regular(2, 2), regular(2, 2)]), np.array([1e-3, 1e-4]).astype("float32")),
    ],
    "matrix_rank": [S(spread(4, 2), None), S(np.ones((2, 3, 3)), None), S(np.zeros((2, 0, 3)), None)],
}
