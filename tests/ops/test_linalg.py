"""Linear algebra at the level users call it."""

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import linalg
from gpugrad.errors import DomainError, GraphError, RangeError, ShapeError

rng = np.random.default_rng(3)


# --- einsum ---------------------------------------------------------------------------------------------------


def random_einsum(rng):
    """A subscript string with operands: repeated letters, ellipses, broadcasting, implicit outputs."""
    letters = list("abcdeXy")
    size = {c: int(rng.integers(1, 4)) for c in letters}
    dots = [int(rng.integers(1, 3)) for _ in range(2)]
    terms, shapes = [], []
    for _ in range(int(rng.choice([1, 2, 2, 2, 3, 4]))):
        term = [str(c) for c in rng.choice(letters[: int(rng.integers(2, 8))], size=int(rng.integers(0, 4)))]
        shape = [size[c] for c in term]
        if rng.random() < 0.3:
            at, n = int(rng.integers(0, len(term) + 1)), int(rng.integers(0, 3))
            wide = [1 if rng.random() < 0.3 else d for d in dots[2 - n :]]
            term, shape = [*term[:at], "...", *term[at:]], [*shape[:at], *wide, *shape[at:]]
        for i, c in enumerate(term):  # an axis of length 1 stretches, unless it belongs to a diagonal
            if c != "..." and term.count(c) == 1 and "..." not in term and rng.random() < 0.1:
                shape[i] = 1
        terms.append("".join(term))
        shapes.append(tuple(shape))
    text = ",".join(terms)
    if rng.random() < 0.8:
        used = sorted(set(text) - set(",."))
        out = [str(c) for c in rng.permutation(used)[: int(rng.integers(0, len(used) + 1))]] if used else []
        if "..." in text:
            out.insert(int(rng.integers(0, len(out) + 1)), "...")
        text += "->" + "".join(out)
    return text, [rng.normal(size=s) for s in shapes]


def test_einsum_fuzz():
    """200 random subscript strings: NumPy's forward; gradients against numeric directional derivatives."""
    rng, done, seen = np.random.default_rng(11), 0, set()
    while done < 200:
        text, xs = random_einsum(rng)
        want = np.einsum(text, *xs)
        ts = [gg.tensor(x, requires_grad=True) for x in xs]
        got = gg.einsum(text, *ts)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12, err_msg=text)
        w = rng.normal(size=want.shape)
        found = gg.gradients(got, ts, gg.tensor(w))
        for i, (x, g) in enumerate(zip(xs, found)):
            rest = [np.broadcast_to(v, v.shape) for v in xs]
            for _ in range(2):  # multilinear: a difference of any length is exact
                v = rng.normal(size=x.shape)
                moved = np.einsum(text, *rest[:i], v, *rest[i + 1 :])
                np.testing.assert_allclose(
                    (g.numpy() * v).sum(), (moved * w).sum(), rtol=1e-10, atol=1e-10, err_msg=text
                )
        done += 1
        seen |= {len(xs), "explicit" if "->" in text else "implicit"} | ({"ellipsis"} if "..." in text else set())
        seen |= (
            {"diagonal"}
            if any(len(set(t)) < len(t) for t in text.replace("...", "").partition("->")[0].split(","))
            else set()
        )
    assert seen == {1, 2, 3, 4, "explicit", "implicit", "ellipsis", "diagonal"}


@pytest.mark.parametrize("text, shapes", [
    ("ij,jk->ik", [(2, 3), (3, 2)]), ("bij,bkj->bik", [(2, 2, 3), (2, 2, 3)]), ("ii->i", [(3, 3)]),
    ("i,i,i->i", [(3,)] * 3), ("ab,bc,cd->da", [(2, 3), (3, 2), (2, 2)]), ("...i,...i", [(2, 1, 3), (2, 3)]),
    ("iij->j", [(2, 2, 3)]), ("ij->", [(2, 2)]),
])  # fmt: skip
def test_einsum_gradients_to_second_order(text, shapes):
    xs = [gg.tensor(rng.normal(size=s)) for s in shapes]
    assert gg.gradcheck(lambda *t: gg.einsum(text, *t), xs)
    assert gg.gradgradcheck(lambda *t: gg.einsum(text, *t), xs)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint8", "bool"])
@pytest.mark.parametrize(
    "columns, rows",
    [((3, 4, 1), (3, 1, 5)), ((4, 1), (3, 1, 5)), ((2, 1, 4, 1), (3, 1, 5)), ((0, 4, 1), (0, 1, 5)),
     ((3, 0, 1), (3, 1, 5)), ((300, 40, 1), (300, 1, 50))],
)  # fmt: skip
def test_stacks_of_outer_products(dtype, columns, rows):
    rng = np.random.default_rng(0)
    x, y = ((3 * rng.normal(size=shape)).astype(dtype) for shape in (columns, rows))
    got, want = gg.matmul(gg.asarray(x), gg.asarray(y)).numpy(), np.matmul(x, y)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_einsum_of_a_product_is_one_matmul():
    x = gg.tensor(rng.normal(size=(2, 3, 4)), requires_grad=True)
    y = gg.einsum("bij,bjk->bik", x, gg.ones((2, 4, 5), dtype=gg.float64))
    assert y.node.op.name == "matmul"
    assert y.node.parents[0] is x.node


@pytest.mark.parametrize("text, shapes, words", [
    ("ij,jk->ik", [(2, 3), (4, 2)], ["'ij,jk->ik'", "float64[2, 3], float64[4, 2]", "axis 'j'", "3 and 4"]),
    ("ij->i", [(2, 3, 4)], ["'ij' names 2 axes", "float64[2, 3, 4]"]),
    ("ij,j", [(2, 3)], ["2 terms for 1 operands"]),
    ("ij->ik", [(2, 3)], ["output letters"]),
    ("ij->ii", [(2, 3)], ["output letters"]),
    ("i!->i", [(2, 3)], ["'!'"]),
    ("ii->i", [(2, 3)], ["lengths 2 and 3"]),
])  # fmt: skip
def test_einsum_errors(text, shapes, words):
    with pytest.raises(ShapeError) as caught:
        gg.einsum(text, *(gg.tensor(np.ones(s)) for s in shapes))
    for word in ["[einsum]", *words, "test_linalg.py:"]:
        assert word in str(caught.value)


# --- products -------------------------------------------------------------------------------------------------

A, B, V = rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 5)), rng.normal(size=(4,))
PRODUCTS = [
    ("tensordot 1", lambda m, a, b, v: m.tensordot(a, b, 1)),
    ("tensordot 0", lambda m, a, b, v: m.tensordot(v, b, 0)),
    ("tensordot axes", lambda m, a, b, v: m.tensordot(a, a, ((0, 2), (0, 2)))),
    ("tensordot all", lambda m, a, b, v: m.tensordot(a, a, 3)),
    ("dot vectors", lambda m, a, b, v: m.dot(v, v)),
    ("dot matrix", lambda m, a, b, v: m.dot(a, b)),
    ("dot n-d", lambda m, a, b, v: m.dot(a, m.reshape(a, (3, 4, 2)))),
    ("dot number", lambda m, a, b, v: m.dot(b, m.sum(v))),
    ("vecdot", lambda m, a, b, v: m.vecdot(a, v)),
    ("vecdot axis", lambda m, a, b, v: m.vecdot(b, b * 2.0, axis=0)),
    ("outer", lambda m, a, b, v: m.outer(b, v)),
    ("kron", lambda m, a, b, v: (m if m is np else linalg).kron(b, a)),
    ("cross", lambda m, a, b, v: (m if m is np else linalg).cross(b[:3, :3], b[1:, 2:])),
    ("cross axis", lambda m, a, b, v: m.linalg.cross(b[:3], b[1:], axis=0)),
    ("trace", lambda m, a, b, v: m.linalg.trace(a, offset=1)),
    ("diagonal", lambda m, a, b, v: m.linalg.diagonal(a, offset=-1)),
    ("diag", lambda m, a, b, v: (m if m is np else linalg).diag(v, -2)),
    ("diag of matrix", lambda m, a, b, v: (m if m is np else linalg).diag(b, 1)),
    ("power", lambda m, a, b, v: m.linalg.matrix_power(b[:, :4], 5)),
    ("power 0", lambda m, a, b, v: m.linalg.matrix_power(b[:, :4], 0) * m.sum(v)),
    ("inverse power", lambda m, a, b, v: m.linalg.matrix_power(b[:, :4], -2)),
    ("pinv", lambda m, a, b, v: m.linalg.pinv(b)),
    ("pinv tall", lambda m, a, b, v: m.linalg.pinv(b.T)),
    ("lstsq", lambda m, a, b, v: m.linalg.lstsq(b, v)[0]),
    ("lstsq tall", lambda m, a, b, v: m.linalg.lstsq(b[:, :2], b[:, 2:])[0]),
    ("lstsq residuals", lambda m, a, b, v: m.linalg.lstsq(b[:, :2], b[:, 2:])[1]),
    ("lstsq singular values", lambda m, a, b, v: m.linalg.lstsq(b, v)[3]),
    ("solve vector", lambda m, a, b, v: m.linalg.solve(b[:, :4], v)),
    ("svdvals", lambda m, a, b, v: m.linalg.svdvals(b)),
    *((f"matrix_norm {o}", lambda m, a, b, v, o=o: m.linalg.matrix_norm(a, ord=o))
      for o in ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf)),
    *((f"vector_norm {o}", lambda m, a, b, v, o=o: m.linalg.vector_norm(a, axis=1, ord=o))
      for o in (1, 2, 3, math.inf, -math.inf)),
]  # fmt: skip


@pytest.mark.parametrize("f", [pytest.param(f, id=name) for name, f in PRODUCTS])
def test_products_like_numpy_and_differentiable(f):
    np.testing.assert_allclose(f(gg, *map(gg.tensor, (A, B, V))).numpy(), f(np, A, B, V), rtol=1e-10, atol=1e-10)
    assert gg.gradcheck(lambda *t: f(gg, *t), [gg.tensor(x) for x in (A, B, V)])


def test_zeroth_norm_and_keepdims():
    x = gg.tensor([[0.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert linalg.vector_norm(x, axis=1, ord=0).tolist() == [2.0, 0.0]
    assert linalg.matrix_norm(x, keepdims=True, ord=1).shape == (1, 1)


def test_operators_and_dtypes():
    x = gg.tensor(A.astype("float32"))
    assert (x @ B.astype("float32")).shape == (2, 3, 5)
    assert (np.ones(4, "float32") @ gg.tensor(B.astype("float32"))[:, :2]).shape == (2,)
    assert (x @ gg.ones((4, 2), dtype=gg.int64)).dtype == gg.float32
    assert (gg.tensor([[1, 2]]) @ gg.tensor([[3], [4]])).tolist() == [[11]]


def test_half_precision_sums_in_float32():
    """4096 products of 1 would stop growing at 2048 in float16."""
    ones = gg.ones((1, 4096), dtype=gg.float16)
    assert (ones @ ones.T).item() == 4096
    assert (ones @ ones.T).dtype == gg.float16


def test_gradient_of_a_stack_times_a_matrix_matches_the_long_way():
    x, w = gg.tensor(rng.normal(size=(3, 5, 4))), gg.tensor(rng.normal(size=(4, 2)), requires_grad=True)
    c = gg.tensor(rng.normal(size=(3, 5, 2)))
    (x @ w).backward(c)
    np.testing.assert_allclose(w.grad.numpy(), np.einsum("bij,bik->jk", x.numpy(), c.numpy()), rtol=1e-12)


def test_decompositions_rebuild_their_input():
    x = rng.normal(size=(2, 4, 3))
    u, s, vh = linalg.svd(gg.tensor(x), full_matrices=False)
    np.testing.assert_allclose(((u * s[:, None, :]) @ vh).numpy(), x, atol=1e-12)
    for mode in ("reduced", "complete"):
        q, r = linalg.qr(gg.tensor(x), mode=mode)
        np.testing.assert_allclose((q @ r).numpy(), x, atol=1e-12)
        q, r = linalg.qr(gg.tensor(x).mT, mode=mode)
        np.testing.assert_allclose((q @ r).numpy(), x.swapaxes(-1, -2), atol=1e-12)
    p = x @ x.swapaxes(-1, -2) + np.eye(4)
    upper = linalg.cholesky(gg.tensor(p), upper=True)
    np.testing.assert_allclose((upper.mT @ upper).numpy(), p, atol=1e-12)
    w, v = linalg.eigh(gg.tensor(p))
    np.testing.assert_allclose(((v * w[:, None, :]) @ v.mT).numpy(), p, atol=1e-12)
    sign, log = linalg.slogdet(gg.tensor(p))
    np.testing.assert_allclose((sign * gg.exp(log)).numpy(), linalg.det(gg.tensor(p)).numpy())


def test_gradients_of_wide_and_full_factors():
    x = gg.tensor(rng.normal(size=(2, 4)))
    assert gg.gradcheck(lambda x: linalg.qr(x)[1], [x])
    assert gg.gradcheck(lambda x: linalg.qr(x.mT, mode="complete")[1], [x])
    assert gg.gradcheck(lambda x: linalg.svd(x)[1], [x])
    assert gg.gradcheck(lambda x: linalg.svd(x)[0] ** 2, [x])
    deficient = gg.tensor(np.outer([1.0, 2.0, -1.0], [1.0, 0.5]))
    np.testing.assert_allclose(linalg.pinv(deficient).numpy(), np.linalg.pinv(deficient.numpy()), atol=1e-12)
    a = gg.tensor(rng.normal(size=3))  # a rank that stays: pinv(a b') = b a' / (|a|^2 |b|^2)
    assert gg.gradcheck(lambda a: linalg.pinv(gg.outer(a, a)), [a])


def test_lstsq_of_stacks_ranks_and_refusals():
    a, b = gg.tensor(rng.normal(size=(3, 5, 2))), gg.tensor(rng.normal(size=(3, 5, 4)))
    x, off, rank, values = linalg.lstsq(a, b)
    assert (x.shape, off.shape, rank.tolist(), values.shape) == ((3, 2, 4), (3, 4), [2, 2, 2], (3, 2))
    for i in range(3):
        want = np.linalg.lstsq(a[i].numpy(), b[i].numpy())
        np.testing.assert_allclose(x[i].numpy(), want[0], atol=1e-12)
        np.testing.assert_allclose(off[i].numpy(), want[1], atol=1e-12)
    thin = gg.tensor(np.outer([1.0, 2.0, 3.0], [1.0, -1.0]))
    x, _, rank, _ = linalg.lstsq(thin, gg.tensor([1.0, 0.0, 1.0], dtype=gg.float64))
    assert rank.item() == 1
    np.testing.assert_allclose(x.numpy(), np.linalg.lstsq(thin.numpy(), [1.0, 0, 1.0])[0], atol=1e-12)
    with pytest.raises(ShapeError, match="numbers of rows differ"):
        linalg.lstsq(a, gg.ones((4,)))


def test_vectors_that_the_matrix_does_not_determine_have_no_gradient():
    x = np.array([[1.0, 2.0, -1.0, 0.5], [0.0, 1.0, 3.0, -2.0]])
    for a, k in ((x, 2), (x.T, 0)):
        full = linalg.svd(gg.tensor(a, requires_grad=True))
        with pytest.raises(GraphError, match="full_matrices=False"):
            full[k].sum().backward()
    complete = linalg.qr(gg.tensor(x.T, requires_grad=True), mode="complete")
    with pytest.raises(GraphError, match="mode='reduced'"):
        complete.Q.sum().backward()


def test_gradient_through_one_output_of_a_decomposition():
    p = rng.normal(size=(3, 3))
    for f in (
        lambda x: linalg.eigh(x)[0][..., 0],
        lambda x: linalg.eigh(x)[1][:, 0] ** 2,
        lambda x: linalg.svd(x)[0][:, 0] ** 2,
        lambda x: linalg.svd(x)[2][0] ** 2,
        lambda x: linalg.qr(x)[0],
        lambda x: linalg.qr(x)[1],
        lambda x: linalg.slogdet(x)[1],
    ):
        assert gg.gradcheck(f, [gg.tensor(p + p.T + 3 * np.diag([1.0, 2.0, 4.0]))])
    x = gg.tensor(p, requires_grad=True)
    linalg.slogdet(x)[0].backward()
    assert x.grad.tolist() == np.zeros((3, 3)).tolist()


@pytest.mark.parametrize("call, kind, words", [
    (lambda: gg.ones((2, 3)) @ gg.ones((2, 3)), ShapeError, ["[matmul]", "float32[2, 3], float32[2, 3]"]),
    (lambda: gg.ones(3) @ gg.tensor(2.0), ShapeError, ["[matmul]"]),
    (lambda: linalg.inv(gg.zeros((2, 2))), DomainError, ["[inv]", "float32[2, 2]", "Singular"]),
    (lambda: linalg.cholesky(-gg.eye(2)), DomainError, ["[cholesky]", "positive definite"]),
    (lambda: linalg.det(gg.ones((2, 3))), ShapeError, ["[det]", "float32[2, 3]", "square"]),
    (lambda: linalg.qr(gg.ones(3)), ShapeError, ["[qr]", "float32[3]"]),
    (lambda: linalg.qr(gg.ones((3, 3)), mode="raw"), RangeError, ["[qr]", "'raw'"]),
    (lambda: gg.tensordot(gg.ones((2, 3)), gg.ones((2, 3)), 1), ShapeError, ["[tensordot]", "differ in length"]),
    (lambda: gg.tensordot(gg.ones(2), gg.ones(2), 2), ShapeError, ["[tensordot]"]),
    (lambda: gg.vecdot(gg.ones((2, 3)), gg.ones((2, 2))), ShapeError, ["[vecdot]", "float32[2, 3]"]),
    (lambda: linalg.cross(gg.ones(2), gg.ones(2)), ShapeError, ["[cross]", "length 3"]),
    (lambda: linalg.matrix_norm(gg.ones((2, 2)), ord=5), RangeError, ["[matrix_norm]", "5"]),
    (lambda: linalg.diag(gg.ones((2, 2, 2))), ShapeError, ["[diag]"]),
])  # fmt: skip
def test_errors_name_op_shapes_and_this_line(call, kind, words):
    with pytest.raises(kind) as caught:
        call()
    for word in [*words, "test_linalg.py:"]:
        assert word in str(caught.value)
