"""Layers: modules with a shape to check, parameters or a mode. Weights start as `torch` starts them.

generator, dtype, device: of the initial values (see `init`).
A ShapeError names the layer, the shape it got, the shape it expects and the user's line.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import gpugrad as gg
from gpugrad.errors import DomainError, RangeError, ShapeError, fail, here
from gpugrad.nn import functional as F
from gpugrad.nn import init
from gpugrad.nn.module import Module, Sequential


def expect(layer: Module, x: Any, fits: bool, expected: str) -> None:
    """Raise ShapeError in the layer's name unless the shape fits."""
    if not fits:
        raise fail(ShapeError, layer.label, f"got shape {list(x.shape)}, expected {expected}")


_warned: set[str] = set()


def mode_of(layer: Module) -> bool:
    """Whether the layer trains; warns once a kind of layer if it does while nothing is recorded."""
    kind = type(layer).__name__
    if layer.training and not gg.is_grad_enabled() and kind not in _warned:
        _warned.add(kind)
        warnings.warn(
            f"[{kind}] is in training mode while gradients are off; evaluate inside `with model.evaluating():` "
            f"or after model.eval()\n  at {here()}",
            stacklevel=2,
        )
    return layer.training


def positive(layer: str, **sizes: int) -> None:
    """Raise DomainError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise fail(DomainError, layer, f"{name} is {size!r}, expected at least 1")


def extents(size: Any, axes: int) -> tuple[int, ...]:
    """A number for each axis, from one for all or from a sequence of them."""
    return (size,) * axes if isinstance(size, int) else tuple(size)


def layout(axes: int, channels: int | str) -> str:
    """The shape of signals or images, as messages show it."""
    return f"[N, {channels}, {'L' if axes == 1 else 'H, W'}]"


Size: TypeAlias = "int | tuple[int, ...]"


def settings(**changed: tuple[Any, Any]) -> str:
    """', name=value' for every (value, default) that differs."""
    return "".join(f", {name}={value!r}" for name, (value, default) in changed.items() if value != default)


class Identity(Module):
    """Its input."""

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """x."""
        return x


class Flatten(Module):
    """All axes from `start_axis` to `end_axis` become one; by default all but the first."""

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        self.start_axis, self.end_axis = start_axis, end_axis

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """(N, ...) to (N, features)."""
        axes = range(x.ndim)
        fits = all(-x.ndim <= axis < x.ndim for axis in (self.start_axis, self.end_axis))
        expect(self, x, fits, f"axes {self.start_axis} and {self.end_axis}")
        start, stop = axes[self.start_axis], axes[self.end_axis] + 1
        return x.reshape((*x.shape[:start], math.prod(x.shape[start:stop]), *x.shape[stop:]))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Axes, where they are not the default."""
        return settings(start_axis=(self.start_axis, 1), end_axis=(self.end_axis, -1))[2:]


class Residual(Module):
    """x + f(x), where f applies the given modules in turn. Raises ShapeError if f changes the shape."""

    def __init__(self, *modules: Module) -> None:
        self.body = modules[0] if len(modules) == 1 else Sequential(*modules)

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """x + f(x)."""
        out = self.body(x)
        expect(self, out, out.shape == x.shape, f"{list(x.shape)} from the body, as its input")
        return x + out  # type: ignore[no-any-return]


class Linear(Module):
    """x W' + b on the last axis: (..., in_features) to (..., out_features), weight (out_features, in_features).

    Weight and bias start uniform within 1 / sqrt(in_features).
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *,
        generator: Any = None, dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        positive("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        bound, made = 1.0 / math.sqrt(in_features), {"generator": generator, "dtype": dtype, "device": device}
        self.weight = init.uniform((out_features, in_features), -bound, bound, **made).requires_grad_()
        self.bias = init.uniform((out_features,), -bound, bound, **made).requires_grad_() if bias else None

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """x W' + b."""
        expect(self, x, x.shape[-1:] == (self.in_features,), f"[..., {self.in_features}]")
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """'in -> out'."""
        return f"{self.in_features} -> {self.out_features}" + settings(bias=(self.bias is not None, True))


class Bilinear(Module):
    """x' W_k y + b_k for every output k: (..., in1_features), (..., in2_features) to (..., out_features).

    Weight (out_features, in1_features, in2_features); weight and bias start uniform within 1 / sqrt(in1_features).
    """

    def __init__(
        self, in1_features: int, in2_features: int, out_features: int, bias: bool = True, *,
        generator: Any = None, dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        positive("Bilinear", in1_features=in1_features, in2_features=in2_features, out_features=out_features)
        self.in1_features, self.in2_features, self.out_features = in1_features, in2_features, out_features
        bound, made = 1.0 / math.sqrt(in1_features), {"generator": generator, "dtype": dtype, "device": device}
        self.weight = init.uniform((out_features, in1_features, in2_features), -bound, bound, **made).requires_grad_()
        self.bias = init.uniform((out_features,), -bound, bound, **made).requires_grad_() if bias else None

    def forward(self, x: gg.Tensor, y: gg.Tensor) -> gg.Tensor:
        """x' W y + b."""
        expect(self, x, x.shape[-1:] == (self.in1_features,), f"[..., {self.in1_features}] as first input")
        expect(self, y, y.shape[-1:] == (self.in2_features,), f"[..., {self.in2_features}] as second input")
        expect(self, y, y.shape[:-1] == x.shape[:-1], f"{[*x.shape[:-1], self.in2_features]} as second input")
        return F.bilinear(x, y, self.weight, self.bias)

    def extra_repr(self) -> str:
        """'in1 x in2 -> out'."""
        sizes = f"{self.in1_features} x {self.in2_features} -> {self.out_features}"
        return sizes + settings(bias=(self.bias is not None, True))


class Convolution(Module):
    """What the convolutions share: weight, bias and settings over `axes` axes, numbers or one an axis.

    Weight and bias start uniform within 1 / sqrt(fan_in). Raises DomainError if groups does not divide both channel
    numbers.
    """

    axes: int
    adjoint = False  # of the weight's shape: inputs first

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, *, generator: Any = None, dtype: Any = None,
        device: str | None = None,
    ) -> None:  # fmt: skip
        name = type(self).__name__
        positive(name, in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            expected = f"expected a divisor of {in_channels} and {out_channels} channels"
            raise fail(DomainError, name, f"groups is {groups}, {expected}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = (
            extents(size, self.axes) for size in (kernel_size, stride, padding, dilation)
        )
        for size in self.kernel_size:
            positive(name, kernel_size=size)
        first, second = (in_channels, out_channels) if self.adjoint else (out_channels, in_channels)
        shape = (first, second // groups, *self.kernel_size)
        made: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": device}
        bound = 1.0 / math.sqrt(init.calculate_fan(shape).fan_in)
        self.weight = init.uniform(shape, -bound, bound, **made).requires_grad_()
        self.bias = init.uniform((out_channels,), -bound, bound, **made).requires_grad_() if bias else None

    def check(self, x: Any) -> None:
        """Raise ShapeError unless x has the layer's channels and axes."""
        fits = x.ndim == self.axes + 2 and x.shape[1] == self.in_channels
        expect(self, x, fits, layout(self.axes, self.in_channels))

    def extra_repr(self) -> str:
        """Channels, kernel and what is not the default."""
        ones, zeros = (1,) * self.axes, (0,) * self.axes
        extra = getattr(self, "output_padding", zeros)
        return f"{self.in_channels} -> {self.out_channels}, {'x'.join(map(str, self.kernel_size))}" + settings(
            stride=(self.stride, ones), padding=(self.padding, zeros), output_padding=(extra, zeros),
            dilation=(self.dilation, ones), groups=(self.groups, 1), bias=(self.bias is not None, True),
        )  # fmt: skip


class Conv1d(Convolution):
    """Cross-correlation of signals (N, in_channels, L), weight (out_channels, in_channels / groups, k)."""

    axes = 1

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """(N, in_channels, L) to (N, out_channels, L')."""
        self.check(x)
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2d(Convolution):
    """Cross-correlation of images (N, in_channels, H, W), weight (out_channels, in_channels / groups, h, w)."""

    axes = 2

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H', W')."""
        self.check(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class TransposedConvolution(Convolution):
    """What the adjoints of convolutions share. output_padding: added to the size at the far end."""

    adjoint = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size = 0,
        output_padding: Size = 0, groups: int = 1, bias: bool = True, dilation: Size = 1, **made: Any,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **made)
        self.output_padding = extents(output_padding, self.axes)


class ConvTranspose1d(TransposedConvolution):
    """The adjoint of `Conv1d`: signals (N, in_channels, L), weight (in_channels, out_channels / groups, k)."""

    axes = 1

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """(N, in_channels, L) to (N, out_channels, L')."""
        self.check(x)
        sizes = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return F.conv_transpose1d(x, self.weight, self.bias, *sizes)


class ConvTranspose2d(TransposedConvolution):
    """The adjoint of `Conv2d`: images (N, in_channels, H, W), weight (in_channels, out_channels / groups, h, w)."""

    axes = 2

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H', W')."""
        self.check(x)
        sizes = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        return F.conv_transpose2d(x, self.weight, self.bias, *sizes)


class Pool(Module):
    """What the pooling layers share: windows of `kernel_size` every `stride` (the kernel's size if None)."""

    axes: int
    pool: Callable[..., gg.Tensor]

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        self.kernel_size, self.padding = extents(kernel_size, self.axes), extents(padding, self.axes)
        self.stride = self.kernel_size if stride is None else extents(stride, self.axes)

    def options(self) -> dict[str, Any]:
        """What `pool` takes beside kernel, stride and padding."""
        return {}

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """(N, C, L) to (N, C, L'), or (N, C, H, W) to (N, C, H', W')."""
        expect(self, x, x.ndim == self.axes + 2, layout(self.axes, "C"))
        return type(self).pool(x, self.kernel_size, self.stride, self.padding, **self.options())

    def extra_repr(self) -> str:
        """Kernel and what is not the default."""
        defaults = {"dilation": (1,) * self.axes, "ceil_mode": False}
        return "x".join(map(str, self.kernel_size)) + settings(
            stride=(self.stride, self.kernel_size), padding=(self.padding, (0,) * self.axes),
            **{name: (value, defaults[name]) for name, value in self.options().items()},
        )  # fmt: skip


class MaxPool(Pool):
    """What the maximum poolings share. ceil_mode: keep a last window that is only partly inside."""

    def __init__(
        self, kernel_size: Size, stride: Size | None = None, padding: Size = 0, dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(kernel_size, stride, padding)
        self.dilation, self.ceil_mode = extents(dilation, self.axes), ceil_mode

    def options(self) -> dict[str, Any]:
        """Dilation and ceil_mode."""
        return {"dilation": self.dilation, "ceil_mode": self.ceil_mode}


class MaxPool1d(MaxPool):
    """The largest value of each window of signals; padding never wins."""

    axes, pool = 1, staticmethod(F.max_pool1d)


class MaxPool2d(MaxPool):
    """The largest value of each window; padding never wins."""

    axes, pool = 2, staticmethod(F.max_pool2d)


class AvgPool1d(Pool):
    """The mean of each window of signals; padding counts as zeros."""

    axes, pool = 1, staticmethod(F.avg_pool1d)


class AvgPool2d(Pool):
    """The mean of each window; padding counts as zeros."""

    axes, pool = 2, staticmethod(F.avg_pool2d)


class AdaptiveAvgPool2d(Module):
    """Means of windows that divide the image into output_size (a number or a pair) parts: any size to that size."""

    def __init__(self, output_size: Size) -> None:
        self.output_size = extents(output_size, 2)

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """(N, C, H, W) to (N, C, *output_size)."""
        expect(self, x, x.ndim == 4, "[N, C, H, W]")
        return F.adaptive_avg_pool2d(x, self.output_size)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """'1x1'."""
        return "x".join(map(str, self.output_size))


class Dropout(Module):
    """In training mode sets each element to 0 with probability p and scales the rest by 1 / (1 - p).

    generator: where the mask comes from, the default one if None. Raises DomainError unless 0 <= p <= 1.
    """

    def __init__(self, p: float = 0.5, *, generator: Any = None) -> None:
        if not 0 <= p <= 1:
            raise fail(DomainError, "Dropout", f"p is {p!r}, expected a probability in [0, 1]")
        self.p, self.generator = p, generator

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """x with elements dropped, or x in evaluation mode."""
        return F.dropout(x, self.p, mode_of(self), self.generator)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """'p=0.5'."""
        return f"p={self.p}"


class BatchNorm(Module):
    """Normalises each channel (axis 1) over all other axes; what BatchNorm1d and BatchNorm2d share.

    Training mode uses the batch's mean and variance and moves `running_mean` and `running_var` (unbiased) towards
    them by `momentum`; evaluation mode uses those. affine: learn a scale `weight` and shift `bias` a channel.
    Ioffe and Szegedy, 2015.
    """

    layouts: dict[int, str]

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True, *,
        dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        positive(type(self).__name__, num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        shape = (num_features,)
        self.weight = init.ones(shape, dtype=dtype, device=device).requires_grad_() if affine else None
        self.bias = init.zeros(shape, dtype=dtype, device=device).requires_grad_() if affine else None
        self.register_buffer("running_mean", init.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("running_var", init.ones(shape, dtype=dtype, device=device))

    running_mean: gg.Tensor
    running_var: gg.Tensor

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """x normalised, of the same shape."""
        expected = " or ".join(layout.format(self.num_features) for layout in self.layouts.values())
        expect(self, x, x.ndim in self.layouts and x.shape[1] == self.num_features, expected)
        return F.batch_norm(  # type: ignore[no-any-return]
            x, self.running_mean, self.running_var, self.weight, self.bias, mode_of(self), self.momentum, self.eps
        )

    def extra_repr(self) -> str:
        """Channels and what is not the default."""
        return f"{self.num_features}" + settings(
            eps=(self.eps, 1e-5), momentum=(self.momentum, 0.1), affine=(self.weight is not None, True)
        )


class BatchNorm1d(BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L)."""

    layouts = {2: "[N, {}]", 3: "[N, {}, L]"}


class BatchNorm2d(BatchNorm):
    """Batch normalisation of (N, C, H, W)."""

    layouts = {4: "[N, {}, H, W]"}


class LayerNorm(Module):
    """Normalises the last axes, those of `normalized_shape`, of each sample. Ba, Kiros and Hinton, 2016.

    affine: learn a scale `weight` and a shift `bias` (without bias=False) of that shape.
    """

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5, affine: bool = True, bias: bool = True, *,
        dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps, shape = eps, self.normalized_shape
        self.weight = init.ones(shape, dtype=dtype, device=device).requires_grad_() if affine else None
        self.bias = init.zeros(shape, dtype=dtype, device=device).requires_grad_() if affine and bias else None

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """x normalised, of the same shape."""
        shape = self.normalized_shape
        expect(self, x, x.shape[max(x.ndim - len(shape), 0) :] == shape, f"[..., {', '.join(map(str, shape))}]")
        return F.layer_norm(x, shape, self.weight, self.bias, self.eps)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Shape and what is not the default."""
        affine = self.weight is not None
        return "x".join(map(str, self.normalized_shape)) + settings(
            eps=(self.eps, 1e-5), affine=(affine, True), bias=(self.bias is not None, affine)
        )


class RMSNorm(Module):
    """Divides the last axes, those of `normalized_shape`, by their root mean square. Zhang and Sennrich, 2019.

    eps: the spacing of the dtype at 1 if None. affine: learn a scale `weight` of that shape.
    """

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float | None = None, affine: bool = True, *,
        dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps = eps
        self.weight = init.ones(self.normalized_shape, dtype=dtype, device=device).requires_grad_() if affine else None

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """x scaled, of the same shape."""
        shape = self.normalized_shape
        expect(self, x, x.shape[max(x.ndim - len(shape), 0) :] == shape, f"[..., {', '.join(map(str, shape))}]")
        return F.rms_norm(x, shape, self.weight, self.eps)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Shape and what is not the default."""
        return "x".join(map(str, self.normalized_shape)) + settings(
            eps=(self.eps, None), affine=(self.weight is not None, True)
        )


class GroupNorm(Module):
    """Normalises each of `num_groups` groups of channels (axis 1) of each sample. Wu and He, 2018.

    affine: learn a scale `weight` and a shift `bias` a channel. Raises DomainError unless the groups divide evenly.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *,
        dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        positive("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise fail(DomainError, "GroupNorm", f"{num_channels} channels do not divide into {num_groups} groups")
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = init.ones((num_channels,), dtype=dtype, device=device).requires_grad_() if affine else None
        self.bias = init.zeros((num_channels,), dtype=dtype, device=device).requires_grad_() if affine else None

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        """x (N, C, ...) normalised, of the same shape."""
        expect(self, x, x.ndim >= 2 and x.shape[1] == self.num_channels, f"[N, {self.num_channels}, ...]")
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Groups, channels and what is not the default."""
        return f"{self.num_groups} of {self.num_channels}" + settings(
            eps=(self.eps, 1e-5), affine=(self.weight is not None, True)
        )


class Embedding(Module):
    """Row ids to rows of `weight` (num_embeddings, embedding_dim): integers (...) to (..., embedding_dim).

    The weight starts standard normal. Repeated ids add their gradients in a fixed order. padding_idx: the row, from
    the end if negative, that starts as zeros and gets no gradient. Raises RangeError if there is no such row.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, *,
        generator: Any = None, dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        positive("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise fail(RangeError, "Embedding", f"padding_idx is {padding_idx}; there are {num_embeddings} rows")
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        weight = init.normal((num_embeddings, embedding_dim), generator=generator, dtype=dtype, device=device)
        self.weight = (weight if padding_idx is None else weight.at[padding_idx].set(0)).requires_grad_()

    def forward(self, ids: gg.Tensor) -> gg.Tensor:
        """(...) to (..., embedding_dim)."""
        return F.embedding(ids, self.weight, self.padding_idx)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """'rows -> dim', and what is not the default."""
        return f"{self.num_embeddings} -> {self.embedding_dim}" + settings(padding_idx=(self.padding_idx, None))
