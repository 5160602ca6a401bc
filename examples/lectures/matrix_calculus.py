"""Identities of matrix calculus, each against the tape's gradient."""

import numpy as np

import gpugrad as gg

rng = np.random.default_rng(1)
A, B, S = rng.normal(size=(4, 4)), rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
X = rng.normal(size=(4, 4)) + 4 * np.eye(4)  # well away from singular
x, u = rng.normal(size=4), rng.normal(size=4)
tA, tB, tX, tx = (gg.tensor(v) for v in (A, B, X, x))


def gradient(f, at):
    return gg.grad(f)(gg.tensor(at)).numpy()


def agree(got, want):
    assert np.allclose(got, want, rtol=1e-11, atol=1e-12), (got, want)


# d(A x): u' A dx, so the gradient of u' A x in x is A' u, in A it is u x'.
agree(gradient(lambda v: gg.vecdot(gg.tensor(u), tA @ v), x), A.T @ u)
agree(gradient(lambda M: gg.vecdot(gg.tensor(u), M @ tx), A), np.outer(u, x))
# d(x' A x) = x' (A + A') dx
agree(gradient(lambda v: gg.vecdot(v, tA @ v), x), (A + A.T) @ x)
# d tr(A X) = tr(A dX), so the gradient is A'.
agree(gradient(lambda M: gg.linalg.trace(tA @ M), X), A.T)
# d(A X B) = A dX B: the gradient of <S, A X B> is A' S B'.
agree(gradient(lambda M: gg.sum(gg.tensor(S) * (tA @ M @ tB)), X), A.T @ S @ B.T)
# d(X^-1) = -X^-1 dX X^-1
inverse = np.linalg.inv(X)
agree(gradient(lambda M: gg.sum(gg.tensor(S) * gg.linalg.inv(M)), X), -inverse.T @ S @ inverse.T)
# d ln|X| = tr(X^-1 dX), so the gradient is X^-T.
agree(gradient(lambda M: gg.linalg.slogdet(M)[1], X), inverse.T)
# d||X||^2 = 2 X
agree(gradient(lambda M: gg.sum(M * M), X), 2 * X)
# Singular values: d s_1 = u_1' dX v_1. Symmetric eigenvalues: d lambda = q' dM q.
U, _, Vt = np.linalg.svd(X)
agree(gradient(lambda M: gg.linalg.svdvals(M)[0], X), np.outer(U[:, 0], Vt[0]))
_, Q = np.linalg.eigh(X + X.T)
agree(gradient(lambda M: gg.linalg.eigh(M + M.T)[0][-1], X), 2 * np.outer(Q[:, -1], Q[:, -1]))

print("matrix calculus: d(Ax), x'Ax, tr, AXB, inverse, log det, norm, SVD and eigenvalues agree")
