"""The losses, under one interface: `loss(prediction, target, *, reduction="mean")`, with options after it.

Shapes are strict: prediction and target have the same shape (or target has one class number a row), and nothing
broadcasts. The loss has the dtype of the prediction. reduction: 'none' gives one value an element, or one a row where
the loss says so; 'sum' and 'mean' give one number. Values out of the domain raise DomainError on the CPU; on a GPU
reading them would make the host wait, so there they are checked inside `with losses.checked():` only. A step of
`gg.replay` checks them while it is eager and traced, its replays do not.
Losses of probabilities bound the logarithm at -100, so a certain and wrong prediction costs 100 with slope 0;
train with the `_with_logits` form, which is exact everywhere.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.errors import DomainError, DTypeError, RangeError, ShapeError, fail
from gpugrad.layered import innermost
from gpugrad.ops.loss import bce_logits, softmax_xent

__all__ = [
    "TABLE",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "categorical_cross_entropy",
    "categorical_cross_entropy_with_logits",
    "categorical_hinge",
    "checked",
    "hinge",
    "huber",
    "kl_divergence",
    "mean_absolute_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "smooth_l1",
    "sparse_categorical_cross_entropy",
    "sparse_categorical_cross_entropy_with_logits",
    "squared_hinge",
]

# --- what they share ----------------------------------------------------------------------------------------


class _Checking(threading.local):
    everywhere = False


_checking = _Checking()


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Check values on a GPU too inside this block (this thread), at the price of waiting for it at every loss."""
    before, _checking.everywhere = _checking.everywhere, True
    try:
        yield
    finally:
        _checking.everywhere = before


def check(
    op: str, t: gg.Tensor, role: str, expected: str, wrong: Callable[[Any], Any], *,
    kind: Any = DomainError, view: Callable[[Any], Any] = np.asarray,
) -> None:  # fmt: skip
    """Raise `kind` with the first value of view(t) where `wrong` holds, if values are checked on this device now."""
    if t.device == "cpu" or _checking.everywhere:
        values = view(on_host(t))
        where = np.asarray(wrong(values))
        if where.any():
            at = tuple(int(i) for i in np.argwhere(where)[0])
            raise fail(kind, op, f"{role} is {values[at]} at {list(at)}, expected {expected}")


def on_host(t: gg.Tensor) -> Any:
    """The values: under `vmap` those of all examples, in a step that is traced those of this call."""
    return np.asarray(innermost(t.data)) if t.device == "cpu" else t.numpy()


def outside(values: Any) -> Any:
    """Where values are no probabilities."""
    return (values < 0) | (values > 1)


def improbable(values: Any) -> Any:
    """Where targets are no probabilities, NaN among them: a prediction of NaN makes a loss of NaN, as it should."""
    return ~((values >= 0) & (values <= 1))


def floating(x: Any) -> gg.Tensor:
    """A tensor of a floating dtype: the default one for integers."""
    t = gg.asarray(x)
    return t.to(dtype=gg.get_default_dtype()) if t.dtype.kind in "biu" else t


def pair(op: str, prediction: Any, target: Any) -> tuple[gg.Tensor, gg.Tensor]:
    """Both as tensors of the prediction's dtype. Raises ShapeError unless their shapes are the same."""
    p, t = floating(prediction), gg.asarray(target)
    if p.shape != t.shape:
        raise fail(
            ShapeError, op, f"prediction has shape {list(p.shape)}, target {list(t.shape)}; a loss never broadcasts"
        )
    return p, t.to(dtype=p.dtype)


def distribution(op: str, prediction: Any, target: Any) -> tuple[gg.Tensor, gg.Tensor]:
    """`pair` of (..., C) whose target rows are distributions."""
    p, t = pair(op, prediction, target)
    if not p.shape:
        raise fail(ShapeError, op, "prediction and target are 0-d, expected rows of classes, (..., C)")
    check(op, t, "target", "a probability in [0, 1]", improbable)
    check(op, t, "the sum of a target row", "1", lambda s: abs(s - 1) > 1e-3, view=lambda v: np.sum(v, -1, float))
    return p, t


def classes(
    op: str, scores: Any, labels: Any, ignore_index: int | None = None, fused: bool = False
) -> tuple[gg.Tensor, gg.Tensor]:
    """Scores (..., C) with class numbers (...). Raises ShapeError, DTypeError, RangeError for what does not fit.

    fused: softmax_xent comes next, which looks at labels on the CPU itself.
    """
    s, y = floating(scores), gg.asarray(labels)
    if y.dtype.kind not in "iu":
        raise fail(DTypeError, op, f"target has dtype {y.dtype}, expected integer class numbers")
    if not s.shape or s.shape[:-1] != y.shape:
        expected = f"prediction has shape {list(s.shape)}, target {list(y.shape)}"
        raise fail(ShapeError, op, f"{expected}; expected [..., C] and one class number a row, [...]")
    n = s.shape[-1]
    if not fused or y.device != "cpu":
        check(
            op, y, "target", f"a class number from 0 to {n - 1}",
            lambda v: ((v < 0) | (v >= n)) & (v != ignore_index), kind=RangeError,
        )  # fmt: skip
    return s, y


def reduced(op: str, values: gg.Tensor, reduction: str) -> gg.Tensor:
    """The values, their sum or their mean. Raises DomainError for another word."""
    if reduction == "mean":
        return values.mean()  # type: ignore[no-any-return]
    if reduction == "sum":
        return values.sum()  # type: ignore[no-any-return]
    if reduction != "none":
        raise fail(DomainError, op, f"reduction is {reduction!r}, expected 'none', 'sum' or 'mean'")
    return values


def log(p: gg.Tensor) -> gg.Tensor:
    """Logarithm of a probability, bounded at -100."""
    with np.errstate(divide="ignore"):
        return gg.clip(gg.log(p), min=-100.0)  # type: ignore[no-any-return]


def picked(s: gg.Tensor, y: gg.Tensor) -> gg.Tensor:
    """The score at the label of each row, with a last axis of length 1."""
    return gg.take_along_axis(s, gg.expand_dims(y, -1), axis=-1)  # type: ignore[no-any-return]


# --- regression ---------------------------------------------------------------------------------------------


def mean_squared_error(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """(p - t)^2, one value an element."""
    p, t = pair("mean_squared_error", prediction, target)
    return reduced("mean_squared_error", gg.square(p - t), reduction)


def mean_squared_logarithmic_error(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """(log(1 + p) - log(1 + t))^2, one value an element. Raises DomainError for negative values of either."""
    op = "mean_squared_logarithmic_error"
    p, t = pair(op, prediction, target)
    check(op, p, "prediction", "0 or more", lambda v: v < 0)
    check(op, t, "target", "0 or more", lambda v: v < 0)
    return reduced(op, gg.square(gg.log1p(p) - gg.log1p(t)), reduction)


def mean_absolute_error(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """|p - t|, one value an element; slope 0 where they are equal."""
    p, t = pair("mean_absolute_error", prediction, target)
    return reduced("mean_absolute_error", gg.abs(p - t), reduction)


def huber(prediction: Any, target: Any, *, delta: float = 1.0, reduction: str = "mean") -> gg.Tensor:
    """d^2 / 2 where d = |p - t| is at most delta, delta (d - delta / 2) beyond; one value an element. Huber, 1964."""
    if not delta > 0:
        raise fail(DomainError, "huber", f"delta is {delta!r}, expected more than 0")
    p, t = pair("huber", prediction, target)
    d = gg.abs(p - t)
    near = gg.clip(d, max=float(delta))
    return reduced("huber", near * (d - 0.5 * near), reduction)


def smooth_l1(prediction: Any, target: Any, *, beta: float = 1.0, reduction: str = "mean") -> gg.Tensor:
    """d^2 / (2 beta) where d = |p - t| is at most beta, d - beta / 2 beyond: huber / beta; beta 0 is |p - t|."""
    if not beta >= 0:
        raise fail(DomainError, "smooth_l1", f"beta is {beta!r}, expected 0 or more")
    if beta == 0:
        return mean_absolute_error(prediction, target, reduction=reduction)
    return huber(prediction, target, delta=beta, reduction=reduction) / float(beta)


# --- two classes --------------------------------------------------------------------------------------------


def binary_cross_entropy(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """-(t log p + (1 - t) log(1 - p)) of probabilities, one value an element. Both in [0, 1], else DomainError."""
    op = "binary_cross_entropy"
    p, t = pair(op, prediction, target)
    check(op, p, "prediction", "a probability in [0, 1]; for logits use binary_cross_entropy_with_logits", outside)
    check(op, t, "target", "a probability in [0, 1]", improbable)
    return reduced(op, -(t * log(p) + (1.0 - t) * log(1.0 - p)), reduction)


def binary_cross_entropy_with_logits(
    prediction: Any, target: Any, *, pos_weight: Any = None, reduction: str = "mean"
) -> gg.Tensor:
    """`binary_cross_entropy` of sigmoid(prediction), exact for any logit; targets in [0, 1], else DomainError.

    pos_weight: factor of the positive part, a number or a tensor that broadcasts to the target.
    """
    op = "binary_cross_entropy_with_logits"
    x, t = pair(op, prediction, target)
    check(op, t, "target", "a probability in [0, 1]", improbable)
    if pos_weight is None:
        return reduced(op, bce_logits(x, t), reduction)
    return reduced(op, pos_weight * t * gg.softplus(-x) + (1.0 - t) * gg.softplus(x), reduction)


def hinge(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """max(0, 1 - t p), one value an element; labels t are -1 and 1, or 0 (meaning -1) and 1, else DomainError."""
    return reduced("hinge", margin("hinge", prediction, target), reduction)


def squared_hinge(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """max(0, 1 - t p)^2, one value an element; labels as for `hinge`."""
    return reduced("squared_hinge", gg.square(margin("squared_hinge", prediction, target)), reduction)


def margin(op: str, prediction: Any, target: Any) -> gg.Tensor:
    """max(0, 1 - t p) with checked labels."""
    p, t = pair(op, prediction, target)

    def stray(labels: Any) -> Any:
        """Labels of neither kind; a 0 where -1 occurs as well."""
        return (labels != 1) & (labels != -1 if (labels == -1).any() else labels != 0)

    check(op, t, "target", "-1 and 1, or 0 and 1, in all places", stray)
    sign = gg.where(t > 0, 1.0, -1.0).to(dtype=p.dtype)
    return gg.maximum(1.0 - sign * p, 0.0)  # type: ignore[no-any-return]


# --- many classes: one value a row --------------------------------------------------------------------------


def categorical_hinge(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """Multiclass hinge, sum over j != y of max(0, s_j - s_y + 1). Weston and Watkins, 1999.

    prediction: scores (..., C); target: class numbers (...). One value a row.
    """
    s, y = classes("categorical_hinge", prediction, target)
    margins = gg.maximum(s - picked(s, y) + 1.0, 0.0)
    others = gg.where(gg.one_hot(y, s.shape[-1]) > 0, 0.0, margins)
    return reduced("categorical_hinge", others.sum(axis=-1), reduction)


def categorical_cross_entropy(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """-sum over classes of t log p, one value a row. Both are probabilities (..., C), target rows sum to 1.

    Raises DomainError for predictions outside [0, 1] or target rows that are no distributions.
    """
    op = "categorical_cross_entropy"
    p, t = distribution(op, prediction, target)
    check(op, p, "prediction", "a probability in [0, 1]; for logits use categorical_cross_entropy_with_logits", outside)
    return reduced(op, -(t * log(p)).sum(axis=-1), reduction)


def categorical_cross_entropy_with_logits(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """`categorical_cross_entropy` of softmax(prediction), one fused operation; logits and target rows (..., C)."""
    op = "categorical_cross_entropy_with_logits"
    x, t = distribution(op, prediction, target)
    return reduced(op, fused(x, t), reduction)


def sparse_categorical_cross_entropy(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """-log p of the labelled class. prediction: probabilities (..., C); target: class numbers (...); one value a row.

    Raises DomainError for predictions outside [0, 1], RangeError for a label that is no class.
    """
    op = "sparse_categorical_cross_entropy"
    p, y = classes(op, prediction, target)
    hint = "a probability in [0, 1]; for logits use sparse_categorical_cross_entropy_with_logits"
    check(op, p, "prediction", hint, outside)
    return reduced(op, -log(picked(p, y))[..., 0], reduction)


def sparse_categorical_cross_entropy_with_logits(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """`sparse_categorical_cross_entropy` of softmax(prediction), one fused operation; logits (..., C), labels (...)."""
    op = "sparse_categorical_cross_entropy_with_logits"
    x, y = classes(op, prediction, target)
    return reduced(op, fused(x, y), reduction)


def fused(x: gg.Tensor, target: gg.Tensor, weight: Any = None, **options: Any) -> gg.Tensor:
    """Cross-entropy of logits (..., C) with class numbers (...) or rows (..., C), one value a row."""
    if x.ndim == 2:
        return softmax_xent(x, target, weight, **options)  # type: ignore[no-any-return]
    n = x.shape[-1]
    flat = target.reshape((-1,) if target.ndim < x.ndim else (-1, n))
    return softmax_xent(x.reshape((-1, n)), flat, weight, **options).reshape(x.shape[:-1])  # type: ignore[no-any-return]


def kl_divergence(prediction: Any, target: Any, *, reduction: str = "mean") -> gg.Tensor:
    """KL(target || prediction) = sum over classes of t log(t / p), with 0 log 0 = 0; one value a row.

    The approximation is the first argument and the true distribution the second, as for every loss here. Both are
    probabilities (..., C); domain errors as for `categorical_cross_entropy`. Kullback and Leibler, 1951.
    """
    p, t = distribution("kl_divergence", prediction, target)
    check("kl_divergence", p, "prediction", "a probability in [0, 1]", outside)
    return reduced("kl_divergence", (t * (log(t) - log(p))).sum(axis=-1), reduction)


TABLE: dict[str, Callable[..., gg.Tensor]] = {
    "mse": mean_squared_error,
    "msle": mean_squared_logarithmic_error,
    "mae": mean_absolute_error,
    "bce": binary_cross_entropy,
    "hinge": hinge,
    "squared_hinge": squared_hinge,
    "cce": categorical_cross_entropy,
    "sce": sparse_categorical_cross_entropy,
    "kl": kl_divergence,
    "bce_logits": binary_cross_entropy_with_logits,
    "cce_logits": categorical_cross_entropy_with_logits,
    "sce_logits": sparse_categorical_cross_entropy_with_logits,
    "categorical_hinge": categorical_hinge,
    "huber": huber,
    "smooth_l1": smooth_l1,
}
