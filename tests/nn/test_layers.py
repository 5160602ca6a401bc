"""Each layer: value against NumPy, numeric gradient in inputs and parameters, errors that name the layer."""

import itertools
import math
import warnings

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.errors import DomainError, DTypeError, RangeError, ShapeError
from gpugrad.nn import functional as F

rng = np.random.default_rng(11)


def apart(*shape):
    """Normal values no two of which are within 0.02 of each other, nor within 0.01 of 0: no kink, no tie is near."""
    n = math.prod(shape)
    return ((rng.permutation(n) - n / 2 + 0.5) * 0.03).reshape(shape)


def gen(seed=0):
    return gg.random.Generator(seed)


def check(layer, *inputs):
    """Numeric gradient of the layer in its inputs and in every parameter."""
    layer.to(dtype=gg.float64)
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach() for p in layer.parameters()]

    def run(*tensors):
        given = dict(zip(names, tensors[len(inputs) :]))
        for path, t in given.items():
            owner, _, name = path.rpartition(".")
            module = dict(layer.named_modules())[owner]
            module.__dict__[name] = t  # a stand-in, not a new parameter
        return layer(*tensors[: len(inputs)])

    tensors = [x if isinstance(x, gg.Tensor) else gg.tensor(x) for x in inputs]
    assert gg.gradcheck(run, [*tensors, *values])


LAYERS = {
    "Linear(4 -> 3)": (lambda: nn.Linear(4, 3, generator=gen()), lambda: [apart(5, 4)]),
    "Linear(4 -> 3, bias=False)": (lambda: nn.Linear(4, 3, bias=False, generator=gen()), lambda: [apart(2, 5, 4)]),
    "Linear(2 -> 1)": (lambda: nn.Linear(2, 1, generator=gen()), lambda: [apart(2)]),
    "Bilinear(3 x 4 -> 2)": (lambda: nn.Bilinear(3, 4, 2, generator=gen()), lambda: [apart(5, 3), apart(5, 4)]),
    "Conv2d(2 -> 4, 3x2)": (lambda: nn.Conv2d(2, 4, (3, 2), generator=gen()), lambda: [apart(2, 2, 5, 4)]),
    "Conv2d(2 -> 4, 3x3, stride=(2, 1), padding=(1, 1), groups=2, bias=False)": (
        lambda: nn.Conv2d(2, 4, 3, (2, 1), 1, groups=2, bias=False, generator=gen()), lambda: [apart(2, 2, 4, 5)],
    ),
    "Conv2d(1 -> 2, 2x2, dilation=(2, 2))": (
        lambda: nn.Conv2d(1, 2, 2, dilation=2, generator=gen()), lambda: [apart(1, 1, 4, 4)],
    ),
    "Conv1d(2 -> 4, 3, stride=(2,), padding=(1,), groups=2)": (
        lambda: nn.Conv1d(2, 4, 3, 2, 1, groups=2, generator=gen()), lambda: [apart(2, 2, 6)],
    ),
    "ConvTranspose1d(2 -> 3, 3, stride=(2,), output_padding=(1,))": (
        lambda: nn.ConvTranspose1d(2, 3, 3, 2, output_padding=1, generator=gen()), lambda: [apart(2, 2, 4)],
    ),
    "ConvTranspose2d(2 -> 4, 3x2, padding=(1, 0), groups=2, bias=False)": (
        lambda: nn.ConvTranspose2d(2, 4, (3, 2), padding=(1, 0), groups=2, bias=False, generator=gen()),
        lambda: [apart(1, 2, 3, 4)],
    ),
    "MaxPool1d(3, stride=(2,), dilation=(2,))": (lambda: nn.MaxPool1d(3, 2, dilation=2), lambda: [apart(2, 2, 9)]),
    "MaxPool2d(2x2, ceil_mode=True)": (lambda: nn.MaxPool2d(2, ceil_mode=True), lambda: [apart(1, 2, 5, 5)]),
    "AvgPool1d(2, padding=(1,))": (lambda: nn.AvgPool1d(2, padding=1), lambda: [apart(2, 2, 5)]),
    "MaxPool2d(2x2)": (lambda: nn.MaxPool2d(2), lambda: [apart(2, 2, 4, 5)]),
    "MaxPool2d(3x2, stride=(1, 2), padding=(1, 0))": (
        lambda: nn.MaxPool2d((3, 2), (1, 2), (1, 0)), lambda: [apart(1, 2, 4, 4)],
    ),
    "AvgPool2d(2x2, padding=(1, 1))": (lambda: nn.AvgPool2d(2, padding=1), lambda: [apart(1, 2, 4, 4)]),
    "AdaptiveAvgPool2d(2x3)": (lambda: nn.AdaptiveAvgPool2d((2, 3)), lambda: [apart(1, 2, 5, 7)]),
    "Flatten()": (lambda: nn.Flatten(), lambda: [apart(2, 3, 4)]),
    "Flatten(start_axis=0, end_axis=1)": (lambda: nn.Flatten(0, 1), lambda: [apart(2, 3, 4)]),
    "Identity()": (lambda: nn.Identity(), lambda: [apart(2, 3)]),
    "Residual()": (lambda: nn.Residual(nn.Linear(3, 3, generator=gen()), nn.Tanh()), lambda: [apart(4, 3)]),
    "Dropout(p=0.3)": (lambda: nn.Dropout(0.3).eval(), lambda: [apart(3, 4)]),
    "BatchNorm1d(3)": (lambda: nn.BatchNorm1d(3), lambda: [apart(5, 3)]),
    "BatchNorm1d(3, eps=0.1, momentum=0.5)": (lambda: nn.BatchNorm1d(3, 0.1, 0.5), lambda: [apart(4, 3, 2)]),
    "BatchNorm2d(3)": (lambda: nn.BatchNorm2d(3).eval(), lambda: [apart(2, 3, 2, 2)]),
    "BatchNorm2d(2, affine=False)": (lambda: nn.BatchNorm2d(2, affine=False), lambda: [apart(3, 2, 2, 2)]),
    "LayerNorm(4)": (lambda: nn.LayerNorm(4), lambda: [apart(3, 4)]),
    "LayerNorm(3x4, eps=0.1, bias=False)": (lambda: nn.LayerNorm((3, 4), 0.1, bias=False), lambda: [apart(2, 3, 4)]),
    "LayerNorm(4, affine=False)": (lambda: nn.LayerNorm(4, affine=False), lambda: [apart(3, 4)]),
    "RMSNorm(4)": (lambda: nn.RMSNorm(4), lambda: [apart(3, 4)]),
    "RMSNorm(3x4, eps=0.1, affine=False)": (lambda: nn.RMSNorm((3, 4), 0.1, False), lambda: [apart(2, 3, 4)]),
    "GroupNorm(2 of 4)": (lambda: nn.GroupNorm(2, 4), lambda: [apart(3, 4, 2)]),
    "Embedding(7 -> 3)": (lambda: nn.Embedding(7, 3, generator=gen()), lambda: [gg.tensor([[1, 1, 6], [0, 1, 2]])]),
}  # fmt: skip


@pytest.mark.parametrize("text", LAYERS)
def test_text_and_numeric_gradient(text):
    make, inputs = LAYERS[text]
    assert make().label == text
    check(make(), *inputs())


ACTIVATIONS = {
    nn.ReLU: (gg.relu, ()), nn.LeakyReLU: (gg.leaky_relu, (0.2,)), nn.ELU: (gg.elu, (0.5,)), nn.SELU: (gg.selu, ()),
    nn.GELU: (gg.gelu, ("tanh",)), nn.SiLU: (gg.silu, ()), nn.Mish: (gg.mish, ()), nn.Sigmoid: (gg.sigmoid, ()),
    nn.LogSigmoid: (gg.log_sigmoid, ()), nn.Tanh: (gg.tanh, ()), nn.Softplus: (gg.softplus, (2.0,)),
    nn.Hardswish: (gg.hardswish, ()), nn.Hardsigmoid: (gg.hardsigmoid, ()), nn.Hardtanh: (gg.hardtanh, (-0.5, 0.5)),
    nn.Softmax: (gg.softmax, (0,)), nn.LogSoftmax: (gg.log_softmax, (0,)),
}  # fmt: skip


@pytest.mark.parametrize("cls", ACTIVATIONS, ids=lambda cls: cls.__name__)
def test_activations_are_their_functions(cls):
    fn, options = ACTIVATIONS[cls]
    x = gg.tensor(apart(5, 4))
    np.testing.assert_array_equal(cls()(x).numpy(), fn(x).numpy())
    np.testing.assert_array_equal(cls(*options)(x).numpy(), fn(x, *options).numpy())
    check(cls(*options), x)
    assert list(cls().parameters()) == []
    assert cls.__name__ in nn.__dict__


def test_options_of_activations():
    assert nn.LeakyReLU(0.1).label == "LeakyReLU(negative_slope=0.1)"
    assert nn.Hardtanh(max_val=2.0).label == "Hardtanh(max_val=2.0)"
    assert nn.Softmax(axis=1).label == "Softmax(axis=1)"
    for wrong in (lambda: nn.ReLU(0.1), lambda: nn.ELU(beta=1.0), lambda: nn.ELU(1.0, alpha=2.0)):
        with pytest.raises(DomainError, match="do not fit, expected"):
            wrong()


def test_linear_value_and_start():
    layer, x = nn.Linear(6, 4, generator=gen(3)), rng.normal(size=(5, 6)).astype("float32")
    W, b = layer.weight.numpy(), layer.bias.numpy()
    np.testing.assert_allclose(layer(gg.tensor(x)).numpy(), x @ W.T + b, rtol=1e-5, atol=1e-6)
    assert layer(gg.tensor(x)).dtype == gg.float32
    again, other = nn.Linear(6, 4, generator=gen(3)), nn.Linear(6, 4, generator=gen(4))
    assert again.weight.numpy().tobytes() == W.tobytes()
    assert other.weight.numpy().tobytes() != W.tobytes()
    big = nn.Linear(400, 300, generator=gen())
    for p in (big.weight.numpy(), big.bias.numpy()):
        assert abs(p).max() <= 1 / math.sqrt(400)
        assert abs(p.std() * math.sqrt(1200) - 1) < 0.15
    conv = nn.Conv2d(8, 16, 3, groups=2, generator=gen())
    assert abs(conv.weight.numpy()).max() <= 1 / math.sqrt(4 * 9)
    assert abs(conv.weight.numpy().std() * math.sqrt(3 * 36) - 1) < 0.1


def test_bilinear_value():
    layer = nn.Bilinear(3, 4, 2, generator=gen(), dtype=gg.float64)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    want = np.einsum("ni,kij,nj->nk", x, layer.weight.numpy(), y) + layer.bias.numpy()
    np.testing.assert_allclose(layer(gg.tensor(x), gg.tensor(y)).numpy(), want, rtol=1e-12)


def test_convolution_and_pooling_values():
    x = rng.normal(size=(2, 3, 7, 6))
    layer = nn.Conv2d(3, 2, (3, 2), stride=(2, 1), padding=(1, 0), generator=gen(), dtype=gg.float64)
    W, b = layer.weight.numpy(), layer.bias.numpy()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    got = layer(gg.tensor(x)).numpy()
    assert got.shape == (2, 2, 4, 5)
    for n, o, i, j in np.ndindex(got.shape):
        np.testing.assert_allclose(got[n, o, i, j], (padded[n, :, 2 * i : 2 * i + 3, j : j + 2] * W[o]).sum() + b[o])
    for cls, reduce in ((nn.MaxPool2d, np.max), (nn.AvgPool2d, np.mean)):
        got = cls(2)(gg.tensor(x)).numpy()
        assert got.shape == (2, 3, 3, 3)
        for i, j in np.ndindex(3, 3):
            want = reduce(x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], axis=(2, 3))
            np.testing.assert_allclose(got[:, :, i, j], want, rtol=1e-12)
    np.testing.assert_allclose(
        nn.AdaptiveAvgPool2d(1)(gg.tensor(x)).numpy()[..., 0, 0], x.mean(axis=(2, 3)), rtol=1e-12
    )


def test_flatten_also_of_an_empty_batch():
    assert nn.Flatten()(gg.zeros((0, 2, 3))).shape == (0, 6)
    assert nn.Flatten(-2)(gg.zeros((4, 2, 3))).shape == (4, 6)


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (nn.Linear(6, 2), (3, 5), r"\[Linear\(6 -> 2\)\] got shape \[3, 5\], expected \[..., 6\]"),
        (nn.Linear(6, 2), (), r"got shape \[\], expected \[..., 6\]"),
        (nn.Conv2d(3, 4, 3), (3, 8, 8), r"\[Conv2d\(3 -> 4, 3x3\)\] got shape \[3, 8, 8\], expected \[N, 3, H, W\]"),
        (nn.Conv2d(3, 4, 3), (1, 1, 8, 8), r"expected \[N, 3, H, W\]"),
        (nn.MaxPool2d(2), (3, 8), r"\[MaxPool2d\(2x2\)\] got shape \[3, 8\], expected \[N, C, H, W\]"),
        (nn.BatchNorm1d(3), (2, 4), r"\[BatchNorm1d\(3\)\] got shape \[2, 4\], expected \[N, 3\] or \[N, 3, L\]"),
        (nn.BatchNorm2d(3), (2, 3), r"expected \[N, 3, H, W\]"),
        (nn.LayerNorm((3, 4)), (2, 4, 3), r"\[LayerNorm\(3x4\)\] got shape \[2, 4, 3\], expected \[..., 3, 4\]"),
        (nn.LayerNorm((3, 4)), (4,), r"expected \[..., 3, 4\]"),
        (nn.RMSNorm(4), (3,), r"\[RMSNorm\(4\)\] got shape \[3\], expected \[..., 4\]"),
        (nn.GroupNorm(2, 4), (3, 6), r"\[GroupNorm\(2 of 4\)\] got shape \[3, 6\], expected \[N, 4, ...\]"),
        (nn.Flatten(2), (3, 4), r"\[Flatten\(start_axis=2\)\] got shape \[3, 4\], expected axes 2 and -1"),
        (nn.Residual(nn.Linear(2, 3)), (4, 2), r"\[Residual\(\)\] got shape \[4, 3\], expected \[4, 2\] from the body"),
    ],
)
def test_wrong_shapes_name_the_layer_and_the_users_line(layer, shape, expected):
    with pytest.raises(ShapeError, match=expected) as caught:
        nn.Sequential(layer)(gg.ones(shape))
    assert str(caught.value).splitlines()[1].strip().startswith(f"at {__file__}:")


def test_bilinear_names_the_input():
    layer = nn.Bilinear(2, 3, 1)
    for shapes, which in ((((4, 3), (4, 3)), "first"), (((4, 2), (4, 2)), "second"), (((4, 2), (5, 3)), "second")):
        with pytest.raises(ShapeError, match=which):
            layer(*map(gg.ones, shapes))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(0, 1), lambda: nn.Conv2d(1, 0, 3), lambda: nn.Conv2d(3, 4, 3, groups=2),
        lambda: nn.Dropout(1.5), lambda: nn.BatchNorm1d(0), lambda: nn.Embedding(0, 3), lambda: nn.Bilinear(1, 0, 1),
        lambda: nn.GroupNorm(2, 3),
    ],
)  # fmt: skip
def test_settings_out_of_range(make):
    with pytest.raises(DomainError, match=r"expected|divide"):
        make()


# --- modes and randomness -----------------------------------------------------------------------------------


def test_dropout():
    x = gg.ones((200, 100))
    layer = nn.Dropout(0.25, generator=gen(1))
    assert nn.Dropout(0.25).eval()(x) is x
    out = layer(x).numpy()
    assert set(np.unique(out)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    assert abs((out == 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / out.size)
    assert layer(x).numpy().tobytes() != out.tobytes()
    assert nn.Dropout(0.25, generator=gen(1))(x).numpy().tobytes() == out.tobytes()
    y = gg.ones((50, 4), dtype=gg.float64).requires_grad_()
    dropped = layer(y)
    dropped.sum().backward()
    np.testing.assert_array_equal(y.grad.numpy(), dropped.numpy())  # the mask of the forward
    assert (nn.Dropout(1.0)(x).numpy() == 0).all()
    assert (nn.Dropout(0.0)(x).numpy() == 1).all()
    with pytest.raises(DomainError):
        F.dropout(x, 2.0)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 2, 5)])
def test_batch_norm_statistics_by_hand(shape):
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3, momentum=0.3, dtype=gg.float64)
    weight, bias = rng.normal(size=3), rng.normal(size=3)
    layer.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    axes, view = (0, *range(2, len(shape))), (3, *[1] * (len(shape) - 2))
    mean, var = np.zeros(3), np.ones(3)
    addresses = [b.data.ctypes.data for b in layer.buffers()]
    for _ in range(3):
        x = rng.normal(size=shape) * 3 + 1
        got = layer(gg.tensor(x)).numpy()
        centred = x - x.mean(axes).reshape(view)
        want = centred / np.sqrt(x.var(axes) + 1e-5).reshape(view) * weight.reshape(view) + bias.reshape(view)
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)
        mean = 0.7 * mean + 0.3 * x.mean(axes)
        var = 0.7 * var + 0.3 * x.var(axes, ddof=1)
        np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
        np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-12)
    assert addresses == [b.data.ctypes.data for b in layer.buffers()]
    assert not any(b.requires_grad for b in layer.buffers())
    layer.eval()
    got = layer(gg.tensor(x)).numpy()
    scale = weight / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(got, (x - mean.reshape(view)) * scale.reshape(view) + bias.reshape(view), rtol=1e-11)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var"]


def test_batch_norm_of_float32_keeps_its_type():
    layer = nn.BatchNorm1d(3)
    assert layer(gg.tensor(rng.normal(size=(4, 3)).astype("float32"))).dtype == gg.float32
    assert layer.running_var.dtype == gg.float32
    with pytest.raises(ShapeError, match="1 value a channel"):
        layer(gg.ones((1, 3)))
    assert layer.eval()(gg.ones((1, 3))).shape == (1, 3)


def test_layer_norm_and_rms_norm_by_hand():
    x = rng.normal(size=(2, 3, 4))
    for shape, axes in (((4,), (2,)), ((3, 4), (1, 2))):
        layer = nn.LayerNorm(shape, dtype=gg.float64)
        weight, bias = rng.normal(size=shape), rng.normal(size=shape)
        layer.load_state_dict({"weight": weight, "bias": bias})
        centred = x - x.mean(axes, keepdims=True)
        want = centred / np.sqrt(x.var(axes, keepdims=True) + 1e-5) * weight + bias
        np.testing.assert_allclose(layer(gg.tensor(x)).numpy(), want, rtol=1e-12, atol=1e-13)
        rms = nn.RMSNorm(shape, eps=1e-3, dtype=gg.float64)
        rms.load_state_dict({"weight": weight})
        want = x / np.sqrt((x**2).mean(axes, keepdims=True) + 1e-3) * weight
        np.testing.assert_allclose(rms(gg.tensor(x)).numpy(), want, rtol=1e-12, atol=1e-13)
    group = nn.GroupNorm(2, 4, dtype=gg.float64)
    x = rng.normal(size=(3, 4, 5))
    parts = x.reshape(3, 2, 10)
    want = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + 1e-5)
    np.testing.assert_allclose(group(gg.tensor(x)).numpy(), want.reshape(x.shape), rtol=1e-12, atol=1e-13)


def test_embedding_rows_and_duplicate_ids():
    layer = nn.Embedding(5, 3, generator=gen())
    ids = gg.tensor([[1, 1], [4, 1]])
    np.testing.assert_array_equal(layer(ids).numpy(), layer.weight.numpy()[ids.numpy()])
    layer(ids).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad.numpy(), np.array([0, 3, 0, 0, 1.0])[:, None] * np.ones(3))
    for wrong in ([5], [-1]):
        with pytest.raises(RangeError, match=rf"id is {wrong[0]} at \[0\], expected a row from 0 to 4"):
            layer(gg.tensor(wrong))
    with pytest.raises(DTypeError):
        layer(gg.tensor([1.0]))
    big, t = gg.tensor(rng.integers(0, 5, size=5000)), gg.tensor(rng.normal(size=(5000, 3)).astype("float32"))
    grads = []
    for _ in range(2):
        layer.zero_grad()
        layer(big).backward(t)
        grads.append(layer.weight.grad.numpy().tobytes())
    assert grads[0] == grads[1]


def test_a_small_network_learns():
    x = np.array(list(itertools.product([0.0, 1.0], repeat=2)), "float32")
    y = gg.tensor((x[:, 0] != x[:, 1]).astype("int64"))
    net = nn.Sequential(nn.Linear(2, 8, generator=gen(1)), nn.Tanh(), nn.Linear(8, 2, generator=gen(2)))
    optimizer = gg.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(gg.tensor(x)), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert (net(gg.tensor(x)).argmax(axis=1) == y).all()


def test_float64_inputs_are_not_hidden():
    out = nn.Linear(2, 1, generator=gen())(gg.ones((1, 2), dtype=gg.float32))
    assert out.dtype == gg.float32


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(3)], ids=lambda m: type(m).__name__)
def test_evaluating_in_training_mode_warns_once(layer, monkeypatch):
    monkeypatch.setattr("gpugrad.nn.layers._warned", set())
    x = gg.ones((4, 3))
    with gg.no_grad(), pytest.warns(UserWarning, match="training mode while gradients are off"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gg.no_grad():
            layer(x)  # said once
        monkeypatch.setattr("gpugrad.nn.layers._warned", set())
        layer(x)  # training
        with layer.evaluating(), gg.no_grad():
            layer(x)
