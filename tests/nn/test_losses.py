"""Every loss against float64 NumPy, value and gradient, all reductions; strict shapes; domains."""

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import losses
from gpugrad.errors import DomainError, DTypeError, RangeError, ShapeError
from gpugrad.nn import functional as F

rng = np.random.default_rng(7)
N, C = 6, 5


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def onehot(y):
    return np.eye(C)[y]


def both(value, slope):
    """A reference: (loss values, derivative of their sum in the prediction)."""
    return lambda p, t: (value(p, t), slope(p, t))


def margins(s, y):
    return np.where(onehot(y) > 0, 0, np.maximum(0, s - s[np.arange(N), y][:, None] + 1))


def hinge_slope(s, y):
    hit = (margins(s, y) > 0).astype(float)
    return hit - onehot(y) * hit.sum(1, keepdims=True)


def picked(p, y):
    return p[np.arange(N), y]


real, other = rng.normal(size=(N, C)), rng.normal(size=(N, C))
positive, more = rng.uniform(0.1, 3, size=(2, N, C))
inside, also = rng.uniform(0.1, 0.9, size=(2, N, C))
rows, soft = (0.5 * softmax(rng.normal(size=(N, C))) + 0.5 / C for _ in range(2))
signs, labels = rng.choice([-1.0, 1.0], size=(N, C)), rng.integers(0, C, size=N)
scores = rng.normal(size=(N, C)) * 1.5


def huber_value(d, delta):
    return np.where(abs(d) <= delta, d * d / 2, delta * (abs(d) - delta / 2))


CASES = {
    "mse": (real, other, {}, both(lambda p, t: (p - t) ** 2, lambda p, t: 2 * (p - t))),
    "msle": (
        positive, more, {},
        both(lambda p, t: (np.log1p(p) - np.log1p(t)) ** 2, lambda p, t: 2 * (np.log1p(p) - np.log1p(t)) / (1 + p)),
    ),
    "mae": (real, other, {}, both(lambda p, t: abs(p - t), lambda p, t: np.sign(p - t))),
    "huber": (
        real, other, {"delta": 0.7}, both(lambda p, t: huber_value(p - t, 0.7), lambda p, t: np.clip(p - t, -0.7, 0.7)),
    ),
    "smooth_l1": (
        real, other, {"beta": 0.4},
        both(lambda p, t: huber_value(p - t, 0.4) / 0.4, lambda p, t: np.clip(p - t, -0.4, 0.4) / 0.4),
    ),
    "bce": (
        inside, also, {},
        both(lambda p, t: -t * np.log(p) - (1 - t) * np.log(1 - p), lambda p, t: (p - t) / (p * (1 - p))),
    ),
    "bce_logits": (
        real, also, {},
        both(
            lambda x, t: t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x), lambda x, t: 1 / (1 + np.exp(-x)) - t
        ),
    ),
    "hinge": (
        real, signs, {}, both(lambda p, t: np.maximum(0, 1 - t * p), lambda p, t: np.where(t * p < 1, -t, 0)),
    ),
    "squared_hinge": (
        real, signs, {},
        both(lambda p, t: np.maximum(0, 1 - t * p) ** 2, lambda p, t: -2 * t * np.maximum(0, 1 - t * p)),
    ),
    "categorical_hinge": (scores, labels, {}, both(lambda s, y: margins(s, y).sum(1), hinge_slope)),
    "cce": (rows, soft, {}, both(lambda p, t: -(t * np.log(p)).sum(1), lambda p, t: -t / p)),
    "cce_logits": (scores, soft, {}, both(lambda x, t: -(t * np.log(softmax(x))).sum(1), lambda x, t: softmax(x) - t)),
    "sce": (rows, labels, {}, both(lambda p, y: -np.log(picked(p, y)), lambda p, y: -onehot(y) / p)),
    "sce_logits": (
        scores, labels, {}, both(lambda x, y: -np.log(picked(softmax(x), y)), lambda x, y: softmax(x) - onehot(y)),
    ),
    "kl": (rows, soft, {}, both(lambda p, t: (t * np.log(t / p)).sum(1), lambda p, t: -t / p)),
}  # fmt: skip


def test_the_table_is_complete_and_public():
    assert set(CASES) == set(losses.TABLE)
    lecture = {"mse", "msle", "mae", "bce", "hinge", "squared_hinge", "cce", "sce", "kl"}
    assert lecture <= set(losses.TABLE)
    assert all(fn.__name__ in losses.__all__ and getattr(losses, fn.__name__) is fn for fn in losses.TABLE.values())
    assert gg.losses is losses


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name, reduction):
    p, t, options, reference = CASES[name]
    value, slope = reference(p, t)
    x = gg.tensor(p, requires_grad=True)
    out = losses.TABLE[name](x, gg.tensor(t), reduction=reduction, **options)
    want = {"none": value, "sum": value.sum(), "mean": value.mean()}[reduction]
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-12, atol=1e-14)
    weights = rng.normal(size=value.shape) if reduction == "none" else np.array(1.0)
    out.backward(gg.tensor(weights))
    each = np.full(value.shape, 1 / value.size if reduction == "mean" else 1.0) if reduction != "none" else weights
    np.testing.assert_allclose(
        x.grad.numpy(), slope * (each[:, None] if each.ndim == 1 else each), rtol=1e-11, atol=1e-14
    )


@pytest.mark.parametrize("name", CASES)
def test_numeric_gradient_to_second_order(name):
    p, t, options, _ = CASES[name]
    loss = losses.TABLE[name]
    assert gg.gradcheck(lambda x: loss(x, gg.tensor(t), reduction="none", **options), [gg.tensor(p)])
    assert gg.gradgradcheck(lambda x: loss(x, gg.tensor(t), reduction="none", **options), [gg.tensor(p)])


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32_and_shapes_are_strict(name):
    p, t, options, reference = CASES[name]
    loss = losses.TABLE[name]
    out = loss(gg.tensor(p.astype("float32")), t, **options)  # a float64 target does not widen
    assert out.dtype == gg.float32
    assert out.shape == ()
    np.testing.assert_allclose(out.numpy(), reference(p, t)[0].mean(), rtol=1e-5)
    for wrong in (t[:1], t[..., None], t[0]):
        with pytest.raises(ShapeError) as caught:
            loss(gg.tensor(p), wrong, **options)
        for part in (list(p.shape), list(wrong.shape), __file__):
            assert str(part) in str(caught.value)
    with pytest.raises(DomainError, match="reduction is 'avg'"):
        loss(gg.tensor(p), t, reduction="avg", **options)


@pytest.mark.parametrize(
    "name, prediction, target, told",
    [
        ("msle", [-0.5], [1.0], r"prediction is -0.5 at \[0\], expected 0 or more"),
        ("msle", [0.5], [-1.0], "target is -1.0"),
        ("bce", [[0.5, 1.5]], [[0.0, 1.0]], r"prediction is 1.5 at \[0, 1\].*binary_cross_entropy_with_logits"),
        ("bce", [0.5], [2.0], "target is 2.0"),
        ("bce_logits", [5.0], [-1.0], "target is -1.0"),
        ("hinge", [0.3, 0.2], [1.0, 2.0], r"target is 2.0 at \[1\]"),
        ("hinge", [0.3, 0.2], [-1.0, 0.0], r"target is 0.0 at \[1\], expected -1 and 1, or 0 and 1"),
        ("squared_hinge", [0.3], [0.5], "target is 0.5"),
        ("cce", [[0.4, 0.6]], [[0.4, 0.5]], "the sum of a target row is 0.9"),
        ("cce", [[-0.1, 0.6]], [[0.5, 0.5]], "prediction is -0.1.*categorical_cross_entropy_with_logits"),
        ("cce_logits", [[3.0, 0.6]], [[1.5, -0.5]], "target is 1.5"),
        ("sce", [[3.0, -2.0]], [0], "prediction is 3.0.*sparse_categorical_cross_entropy_with_logits"),
        ("kl", [[0.4, 0.6]], [[1.0, 1.0]], "the sum of a target row is 2.0"),
        ("kl", [[1.4, 0.6]], [[1.0, 0.0]], "prediction is 1.4"),
    ],
)
def test_values_out_of_the_domain_raise(name, prediction, target, told):
    with pytest.raises(DomainError, match=told) as caught:
        losses.TABLE[name](gg.tensor(prediction, dtype=gg.float64), gg.tensor(target))
    assert f"[{losses.TABLE[name].__name__}]" in str(caught.value)


@pytest.mark.parametrize("name", ["sce", "sce_logits", "categorical_hinge"])
def test_labels_must_be_integers_in_range(name):
    p = gg.tensor([[0.2, 0.8], [0.5, 0.5]])
    with pytest.raises(RangeError, match=r"target is 2 at \[1\], expected a class number from 0 to 1"):
        losses.TABLE[name](p, gg.tensor([0, 2]))
    with pytest.raises(RangeError, match="target is -100"):
        losses.TABLE[name](p, gg.tensor([0, -100]))
    with pytest.raises(DTypeError, match="expected integer class numbers"):
        losses.TABLE[name](p, gg.tensor([0.0, 1.0]))
    assert losses.TABLE[name](p, gg.tensor([0, 1], dtype=gg.uint8)).shape == ()


def test_options_out_of_range_raise():
    for loss, option in ((losses.huber, {"delta": 0.0}), (losses.smooth_l1, {"beta": -1.0})):
        with pytest.raises(DomainError, match=next(iter(option))):
            loss([1.0], [2.0], **option)
    np.testing.assert_allclose(losses.smooth_l1([1.0, 5.0], [2.0, 2.0], beta=0).numpy(), 2.0)


def test_binary_labels_may_be_zero_and_one():
    p = gg.tensor(real)
    for name in ("hinge", "squared_hinge"):
        loss = losses.TABLE[name]
        np.testing.assert_array_equal(loss(p, signs).numpy(), loss(p, (signs + 1) / 2).numpy())
        assert loss(p, (signs > 0)).numpy() == loss(p, signs).numpy()
    assert losses.hinge([0.5, 0.5], [1, 1]).item() == 0.5


def test_certain_predictions_are_finite():
    for name, target in (("bce", [1.0, 0.0]), ("cce", [1.0, 0.0]), ("kl", [1.0, 0.0])):
        p = gg.tensor([[0.0, 1.0]], requires_grad=True)
        out = losses.TABLE[name](p, gg.tensor([target]), reduction="sum")
        assert out.item() == (200 if name == "bce" else 100)
        out.backward()
        assert np.isfinite(p.grad.numpy()).all()
        exact = losses.TABLE[name](gg.tensor([target]), gg.tensor([target]), reduction="sum")
        assert exact.item() == 0


def test_logit_forms_are_exact_where_probabilities_underflow():
    x = gg.tensor([[1000.0, 0.0], [-1000.0, 0.0]], requires_grad=True)
    out = losses.sparse_categorical_cross_entropy_with_logits(x, gg.tensor([1, 0]), reduction="none")
    assert out.tolist() == [1000.0, 1000.0]
    out.sum().backward()
    assert x.grad.tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    z = gg.tensor([-1.0, -2, -5, -10, -20, -50, -100, -200, -500, -1000, -2000], dtype=gg.float64, requires_grad=True)
    out = losses.binary_cross_entropy_with_logits(z, gg.ones(11), reduction="none")
    np.testing.assert_allclose(out.numpy(), np.logaddexp(0, -z.numpy()), rtol=1e-15)
    np.testing.assert_allclose(out.numpy()[:4], [1.3133, 2.1269, 5.0067, 10], atol=1e-4)
    out.sum().backward()
    np.testing.assert_allclose(z.grad.numpy(), -1 / (1 + np.exp(z.numpy())), rtol=1e-12)


def test_kl_takes_the_approximation_first():
    p, t = gg.tensor([[0.5, 0.5]]), gg.tensor([[1.0, 0.0]])
    np.testing.assert_allclose(losses.kl_divergence(p, t).item(), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(F.kl_div(gg.log(p), t, reduction="batchmean").item(), np.log(2), rtol=1e-6)


def test_numbers_of_the_lectures():
    out, t = gg.tensor([10.0], requires_grad=True), gg.tensor([7.0])
    loss = losses.mean_squared_error(out, t)
    loss.backward()
    assert (loss.item(), out.grad.tolist()) == (9.0, [6.0])
    x, W1, W2 = gg.tensor(3.0), gg.tensor([4.0, -2.0], requires_grad=True), gg.tensor([1.0, 0.0], requires_grad=True)
    out = gg.relu((gg.relu(W1 * x) * W2).sum())
    assert out.item() == 12.0
    losses.mean_squared_error(out, gg.tensor(10.0)).backward()
    assert W2.grad.tolist() == [48.0, 0.0]
    assert W1.grad.tolist() == [12.0, 0.0]
    s = gg.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], dtype=gg.float64)
    out = losses.categorical_hinge(s, gg.tensor([0, 1, 2]), reduction="none")
    np.testing.assert_allclose(out.numpy(), [2.9, 0.0, 12.9], atol=1e-12)


# --- the torch names ----------------------------------------------------------------------------------------


def reference_xent(x, t, w, ignore, smoothing, reduction):
    """Cross-entropy of rows (N, C) from its definition."""
    logp = np.log(softmax(x))
    w = np.ones(x.shape[1]) if w is None else w
    if t.ndim == 2:
        q = (1 - smoothing) * t + smoothing / x.shape[1]
        values, norm = -(q * w * logp).sum(1), len(x)
    else:
        live = t != ignore
        q = (1 - smoothing) * np.eye(x.shape[1])[np.where(live, t, 0)] + smoothing / x.shape[1]
        values, norm = -(q * w * logp).sum(1) * live, (w[np.where(live, t, 0)] * live).sum()
    return {"none": values, "sum": values.sum(), "mean": values.sum() / norm}[reduction]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["labels", "ignored", "soft"])
def test_cross_entropy(kind, weighted, smoothing, reduction):
    t = soft if kind == "soft" else labels.copy()
    if kind == "ignored":
        t[[1, 4]] = -100
    w = rng.uniform(0.5, 2, size=C) if weighted else None
    call = lambda x: F.cross_entropy(
        x, gg.tensor(t), None if w is None else gg.tensor(w), reduction=reduction, label_smoothing=smoothing
    )
    want = reference_xent(scores, t, w, -100, smoothing, reduction)
    np.testing.assert_allclose(call(gg.tensor(scores)).numpy(), want, rtol=1e-12)
    assert gg.gradcheck(call, [gg.tensor(scores)])
    if not smoothing and kind != "soft":
        out = F.nll_loss(
            gg.log_softmax(gg.tensor(scores)), gg.tensor(t), None if w is None else gg.tensor(w), reduction=reduction
        )
        np.testing.assert_allclose(out.numpy(), want, rtol=1e-12)


def test_cross_entropy_of_images_has_classes_on_axis_one():
    x, t = rng.normal(size=(2, C, 3, 4)), rng.integers(0, C, size=(2, 3, 4))
    flat, flat_t = np.moveaxis(x, 1, -1).reshape(-1, C), t.reshape(-1)
    for reduction in ("none", "sum", "mean"):
        want = reference_xent(flat, flat_t, None, -100, 0.0, reduction)
        got = F.cross_entropy(gg.tensor(x), gg.tensor(t), reduction=reduction).numpy()
        np.testing.assert_allclose(got.reshape(-1) if got.ndim else got, want, rtol=1e-12)
        rows = np.moveaxis(np.eye(C)[t], -1, 1)
        got = F.cross_entropy(gg.tensor(x), gg.tensor(rows), reduction=reduction).numpy()
        np.testing.assert_allclose(got.reshape(-1) if got.ndim else got, want, rtol=1e-12)
        got = F.nll_loss(gg.log_softmax(gg.tensor(x), axis=1), gg.tensor(t), reduction=reduction).numpy()
        np.testing.assert_allclose(got.reshape(-1) if got.ndim else got, want, rtol=1e-12)
    assert gg.gradcheck(lambda x: F.cross_entropy(x, gg.tensor(t)), [gg.tensor(x)])
    one = F.cross_entropy(gg.tensor(scores[0]), gg.tensor(labels[0]))
    np.testing.assert_allclose(one.numpy(), reference_xent(scores[:1], labels[:1], None, -100, 0.0, "mean"), rtol=1e-12)


def test_cross_entropy_refuses_what_does_not_fit():
    x = gg.tensor(scores)
    for target, kind, told in (
        (gg.tensor(labels[:3]), ShapeError, r"prediction has shape \[6, 5\], target \[3\]"),
        (gg.tensor(soft[:3]), DTypeError, "float64, expected integer class numbers"),
        (gg.tensor(soft * 2), DomainError, "target"),
        (gg.tensor(labels + C), RangeError, "label"),
    ):
        with pytest.raises(kind, match=told):
            F.cross_entropy(x, target)
    with pytest.raises(ShapeError, match=r"weight has shape \[3\], expected \[5\]"):
        F.cross_entropy(x, gg.tensor(labels), gg.ones(3))
    with pytest.raises(DomainError, match="label_smoothing"):
        F.cross_entropy(x, gg.tensor(labels), label_smoothing=2.0)
    with pytest.raises(DomainError, match="reduction"):
        F.cross_entropy(x, gg.tensor(labels), reduction="avg")


def test_kl_div_of_log_probabilities():
    x, t = np.log(rows), soft
    values = t * (np.log(t) - x)
    for reduction, want in (
        ("none", values), ("sum", values.sum()), ("mean", values.mean()), ("batchmean", values.sum() / N),
    ):  # fmt: skip
        got = F.kl_div(gg.tensor(x), gg.tensor(t), reduction=reduction)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)
        got = F.kl_div(gg.tensor(x), gg.tensor(np.log(t)), reduction=reduction, log_target=True)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)
    assert gg.gradcheck(lambda x, t: F.kl_div(x, t), [gg.tensor(x), gg.tensor(t)])


def test_a_factor_for_the_positive_class():
    w = np.array([1.0, 2.0, 0.5, 3.0, 1.0])
    got = F.binary_cross_entropy_with_logits(
        gg.tensor(real), gg.tensor(also), pos_weight=gg.tensor(w), reduction="none"
    )
    want = w * also * np.logaddexp(0, -real) + (1 - also) * np.logaddexp(0, real)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)


def test_torch_names_are_the_same_functions():
    pairs = {
        "mse_loss": "mse", "l1_loss": "mae", "huber_loss": "huber", "smooth_l1_loss": "smooth_l1", "hinge": "hinge",
        "binary_cross_entropy": "bce", "binary_cross_entropy_with_logits": "bce_logits",
        "squared_hinge": "squared_hinge", "categorical_hinge": "categorical_hinge",
    }  # fmt: skip
    for name, short in pairs.items():
        assert getattr(F, name) is losses.TABLE[short]


def test_rows_may_have_any_leading_axes():
    p, t, y = rows.reshape(2, 3, C), soft.reshape(2, 3, C), labels.reshape(2, 3)
    for name in ("cce", "cce_logits", "kl", "sce", "sce_logits"):
        flat, deep = (y.reshape(-1), y) if name.startswith("sce") else (soft, t)
        out = losses.TABLE[name](gg.tensor(p), gg.tensor(deep), reduction="none")
        want = losses.TABLE[name](gg.tensor(rows), gg.tensor(flat), reduction="none")
        np.testing.assert_array_equal(out.numpy(), want.numpy().reshape(2, 3))
        one = losses.TABLE[name](gg.tensor(rows[0]), gg.tensor(flat[0]), reduction="none")
        assert one.shape == ()
        np.testing.assert_array_equal(one.numpy(), want.numpy()[0])
