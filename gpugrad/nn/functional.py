"""Layers and losses as functions of tensors, under the names and argument orders PyTorch users know.

Layouts: images (N, C, H, W), convolution weights (outputs, inputs / groups, h, w), linear weights (outputs, inputs).
"""

from __future__ import annotations

from typing import Any

import gpugrad as gg
from gpugrad import losses
from gpugrad.errors import DomainError, ShapeError, fail
from gpugrad.ops import activation, conv, linalg
from gpugrad.ops.activation import *
from gpugrad.ops.activation import bias_act
from gpugrad.ops.attention import rotary, scaled_dot_product_attention
from gpugrad.ops.index import embedding
from gpugrad.ops.normalize import add_layer_norm, add_rms_norm, batch_norm, group_norm, layer_norm, rms_norm
from gpugrad.ops.random import dropout
from gpugrad.ops.softmax import log_softmax, softmax

__all__ = [
    "adaptive_avg_pool2d", "add_layer_norm", "add_rms_norm", "avg_pool1d", "avg_pool2d", "batch_norm", "bias_act",
    "bilinear", "binary_cross_entropy", "binary_cross_entropy_with_logits", "categorical_hinge", "conv1d",
    "conv2d", "conv_transpose1d", "conv_transpose2d", "cross_entropy", "dropout", "embedding", "group_norm",
    "hinge", "huber_loss", "kl_div", "l1_loss", "layer_norm", "linear", "log_softmax", "max_pool1d", "max_pool2d",
    "mse_loss", "nll_loss", "rms_norm", "rotary", "scaled_dot_product_attention", "smooth_l1_loss", "softmax",
    "squared_hinge",
]  # fmt: skip
__all__ += activation.__all__

# --- layers -------------------------------------------------------------------------------------------------


def linear(x: Any, weight: Any, bias: Any = None) -> gg.Tensor:
    """x W' + b on the last axis: x (..., in), weight (out, in), bias (out,) to (..., out)."""
    return gg.matmul(x, gg.matrix_transpose(weight)) if bias is None else linalg.affine(x, weight, bias)  # type: ignore[no-any-return]


def bilinear(x: Any, y: Any, weight: Any, bias: Any = None) -> gg.Tensor:
    """sum over i, j of x_i W_kij y_j, plus b_k: x (..., in1), y (..., in2), weight (out, in1, in2) to (..., out)."""
    out: gg.Tensor = gg.einsum("...i,kij,...j->...k", x, weight, y)
    return out if bias is None else out + bias  # type: ignore[no-any-return]


def conv1d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> gg.Tensor:
    """Cross-correlation of signals: x (N, C, L), weight (O, C / groups, k), bias (O,) to (N, O, L')."""
    out = conv.conv1d(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return add_channels("conv1d", out, bias)


def conv2d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> gg.Tensor:
    """Cross-correlation: x (N, C, H, W), weight (O, C / groups, h, w), bias (O,) to (N, O, H', W').

    stride, padding (zeros), dilation: a number, or a pair for height and width. Raises ShapeError.
    """
    out = conv.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return add_channels("conv2d", out, bias)


def conv_transpose1d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
    dilation: Any = 1,
) -> gg.Tensor:  # fmt: skip
    """The adjoint of `conv1d` in its input: x (N, C, L), weight (C, O / groups, k), bias (O,) to (N, O, L')."""
    a = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    return add_channels("conv_transpose1d", conv.conv_transpose1d(x, weight, **a, groups=groups), bias)


def conv_transpose2d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
    dilation: Any = 1,
) -> gg.Tensor:  # fmt: skip
    """The adjoint of `conv2d` in its input: x (N, C, H, W), weight (C, O / groups, h, w), bias (O,) to (N, O, H', W').

    H' = (H - 1) stride - 2 padding + dilation (h - 1) + output_padding + 1. Raises ShapeError.
    """
    a = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    return add_channels("conv_transpose2d", conv.conv_transpose2d(x, weight, **a, groups=groups), bias)


def add_channels(op: str, x: Any, bias: Any) -> gg.Tensor:
    """x (N, C, ...) plus a bias (C,), or x if there is none. Raises ShapeError."""
    if bias is not None and bias.shape != x.shape[1:2]:
        have, want = list(bias.shape), list(x.shape[1:2])
        raise fail(ShapeError, op, f"bias has shape {have}, expected {want}, one number a channel")
    return x if bias is None else x + gg.reshape(bias, (-1,) + (1,) * (x.ndim - 2))  # type: ignore[no-any-return]


def max_pool1d(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> gg.Tensor:
    """The largest element of each window of (N, C, L); stride: the kernel's size if None; padding never wins."""
    return conv.max_pool1d(x, kernel_size, stride, padding, dilation, ceil_mode)  # type: ignore[no-any-return]


def max_pool2d(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> gg.Tensor:
    """The largest pixel of each window of (N, C, H, W); stride: the kernel's size if None; padding never wins."""
    return conv.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)  # type: ignore[no-any-return]


def avg_pool1d(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0) -> gg.Tensor:
    """The mean of each window of (N, C, L); stride: the kernel's size if None; padding counts as zeros."""
    return conv.avg_pool1d(x, kernel_size, stride, padding)  # type: ignore[no-any-return]


def avg_pool2d(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0) -> gg.Tensor:
    """The mean of each window of (N, C, H, W); stride: the kernel's size if None; padding counts as zeros."""
    return conv.avg_pool2d(x, kernel_size, stride, padding)  # type: ignore[no-any-return]


def adaptive_avg_pool2d(x: Any, output_size: Any) -> gg.Tensor:
    """The means of output_size (a number or a pair) windows that cover (N, C, H, W) evenly."""
    return conv.adaptive_avg_pool2d(x, output_size)  # type: ignore[no-any-return]


# --- losses with a torch name -------------------------------------------------------------------------------

mse_loss = losses.mean_squared_error
l1_loss = losses.mean_absolute_error
huber_loss = losses.huber
smooth_l1_loss = losses.smooth_l1
binary_cross_entropy = losses.binary_cross_entropy
binary_cross_entropy_with_logits = losses.binary_cross_entropy_with_logits
hinge = losses.hinge
squared_hinge = losses.squared_hinge
categorical_hinge = losses.categorical_hinge


def cross_entropy(
    logits: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> gg.Tensor:  # fmt: skip
    """Cross-entropy of softmax(logits), one fused operation; one value a row, which `reduction` sums or averages.

    logits: (N, C), (C,) or (N, C, d1, ...), classes on axis 1. target: class numbers of that shape without the class
    axis, or probabilities of the same shape whose rows sum to 1. weight: (C,), a factor a class; the mean is then the
    weighted mean. Rows labelled ignore_index count nothing. label_smoothing: the share of the target spread evenly.
    Raises ShapeError, RangeError for a label that is no class, DomainError for rows that are no distributions.
    """
    op = "cross_entropy"
    x, t = losses.floating(logits), gg.asarray(target)
    if not 0 <= label_smoothing <= 1:
        raise fail(DomainError, op, f"label_smoothing is {label_smoothing!r}, expected a number in [0, 1]")
    soft = t.shape == x.shape and t.dtype.kind not in "iu"
    if x.ndim > 2:
        x, t = gg.moveaxis(x, 1, -1), gg.moveaxis(t, 1, -1) if soft else t
    x, t = losses.distribution(op, x, t) if soft else losses.classes(op, x, t, ignore_index, fused=True)
    n = x.shape[-1]
    if weight is not None and weight.shape != (n,):
        raise fail(ShapeError, op, f"weight has shape {list(weight.shape)}, expected [{n}], one factor a class")
    rows = losses.fused(x, t, weight, ignore_index=ignore_index, smoothing=float(label_smoothing))
    if reduction == "mean" and not soft:
        return rows.sum() / counted(t, weight, ignore_index, x.dtype)  # type: ignore[no-any-return]
    return losses.reduced(op, rows, reduction)


def counted(labels: gg.Tensor, weight: Any, ignore_index: int, dtype: Any) -> gg.Tensor:
    """Rows that count, or the sum of their class weights: what a mean over labelled rows divides by."""
    live = gg.not_equal(labels, ignore_index)
    if weight is None:
        return live.sum().to(dtype=dtype)  # type: ignore[no-any-return]
    return gg.where(live, gg.take(weight, gg.where(live, labels, 0), axis=0), 0.0).sum()  # type: ignore[no-any-return]


def nll_loss(
    log_probs: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> gg.Tensor:
    """-log p of the labelled class, from log-probabilities; shapes, weight and mean as for `cross_entropy`."""
    x, t = losses.floating(log_probs), gg.asarray(target)
    x, t = losses.classes("nll_loss", gg.moveaxis(x, 1, -1) if x.ndim > 2 else x, t, ignore_index)
    live = gg.not_equal(t, ignore_index)
    label = gg.where(live, t, 0)
    rows = -losses.picked(x, label)[..., 0]
    rows = gg.where(live, rows if weight is None else rows * gg.take(weight, label, axis=0), 0.0)
    if reduction == "mean":
        return rows.sum() / counted(t, weight, ignore_index, x.dtype)  # type: ignore[no-any-return]
    return losses.reduced("nll_loss", rows, reduction)


def kl_div(log_probs: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> gg.Tensor:
    """t (log t - log p), one value an element: first the logarithm of the approximation, then the true distribution.

    Both of one shape. reduction: 'none', 'sum', 'mean' over elements, or 'batchmean', the sum over the first axis's
    length, which is the divergence. log_target: the target is given as its logarithm. See also
    `losses.kl_divergence`, which takes probabilities.
    """
    x, t = losses.pair("kl_div", log_probs, target)
    values = gg.exp(t) * (t - x) if log_target else gg.xlogy(t, t) - t * x
    if reduction == "batchmean":
        return values.sum() / x.shape[0]  # type: ignore[no-any-return]
    return losses.reduced("kl_div", values, reduction)
