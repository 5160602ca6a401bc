"""saved_tensors_hooks and save_on_cpu: what is kept between forward and backward, and what it costs when unused."""

from __future__ import annotations

import threading
import tracemalloc
import zlib

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn, op
from gpugrad.errors import DTypeError, GraphError, fail

from .cuda.conftest import double  # noqa: F401 - a fixture


class Store:
    """Hooks that keep a copy elsewhere and count."""

    def __init__(self):
        self.packed, self.unpacked = [], 0

    def pack(self, x):
        self.packed.append(x)
        return len(self.packed) - 1, x.numpy().copy()

    def unpack(self, kept):
        self.unpacked += 1
        return gg.Tensor(kept[1].copy())

    def open(self):
        return gg.saved_tensors_hooks(self.pack, self.unpack)


def leaf(*shape, seed=0):
    return gg.Tensor(np.random.default_rng(seed).normal(size=shape)).requires_grad_()


def test_pack_sees_what_is_saved_and_unpack_gives_it_back():
    x, y = leaf(3), leaf(3, seed=1)
    store = Store()
    with store.open():
        z = gg.exp(x * y).sum()
    assert [type(p) for p in store.packed] == [gg.Tensor] * 3
    assert all(not p.requires_grad for p in store.packed)
    np.testing.assert_array_equal(store.packed[0].data, x.data)
    np.testing.assert_array_equal(store.packed[2].data, np.exp(x.data * y.data))
    assert store.unpacked == 0
    z.backward()
    assert store.unpacked == 3  # once each, though two rules of the product read both factors
    np.testing.assert_array_equal(x.grad.data, np.exp(x.data * y.data) * y.data)
    np.testing.assert_array_equal(y.grad.data, np.exp(x.data * y.data) * x.data)


def test_shapes_numbers_and_constants_are_not_packed():
    x, store = leaf(3), Store()
    with store.open():
        (x * 2.0 + 1.0).sum().backward()
        gg.exp(x.detach())
        with gg.no_grad():
            gg.exp(x)
    assert store.packed == []


def model():
    gg.random.seed(0)
    layers = [m for _ in range(4) for m in (nn.Linear(20, 20), nn.GELU(), nn.LayerNorm(20), nn.Dropout(0.3))]
    return nn.Sequential(*layers, nn.Linear(20, 5))


def trained(context):
    """Loss and gradients of a network with convolution-free kinds of layers: all kinds of saved tuples."""
    net = model()
    x = gg.Tensor(np.random.default_rng(3).normal(size=(16, 20)).astype("float32"))
    labels = gg.Tensor(np.arange(16) % 5)
    with context:
        loss = nn.functional.cross_entropy(net(x), labels)
    loss.backward()
    return loss.data, [p.grad.data for p in net.parameters()]


class nothing(gg.saved_tensors_hooks):
    def __init__(self):
        super().__init__(lambda x: x, lambda x: x)


def compressing():
    """Lossless, as a hook may be."""
    return gg.saved_tensors_hooks(
        lambda x: (x.shape, x.dtype, zlib.compress(x.numpy().tobytes())),
        lambda k: gg.Tensor(np.frombuffer(zlib.decompress(k[2]), k[1]).reshape(k[0])),
    )


@pytest.mark.parametrize("context", [nothing, compressing, gg.save_on_cpu])
def test_same_loss_and_gradients_to_the_bit(context):
    want, got = trained(gg.enable_grad()), trained(context())
    assert want[0] == got[0]
    assert len(want[1]) > 10
    for g, w in zip(got[1], want[1]):
        np.testing.assert_array_equal(g, w)


def test_half_precision_halves_what_is_held():
    def held(context):
        x = gg.Tensor(np.linspace(-1, 1, 100_000, dtype="float32")).requires_grad_()
        tracemalloc.start()
        with context:
            y = x
            for _ in range(10):
                y = gg.sin(y)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        y.sum().backward()
        return size, x.grad.data

    full, exact = held(gg.enable_grad())
    half, near = held(
        gg.saved_tensors_hooks(lambda x: x.astype(gg.float16), lambda x: x.astype(gg.float32)),
    )
    assert half < 0.65 * full  # the last result is held by the caller, in full
    np.testing.assert_allclose(near, exact, rtol=2e-2)


def test_offload_halves_the_peak_on_the_gpu(double):  # noqa: F811
    """An MLP on the double, whose pool counts live bytes: `reserved` is the most there was since it was released."""
    net = nn.Sequential(*[m for _ in range(8) for m in (nn.Linear(64, 64), nn.Tanh())]).to("cuda")
    x = gg.asarray(np.random.default_rng(0).normal(size=(1024, 64)).astype("float32"), device="cuda")

    def step(context):
        for p in net.parameters():
            p.grad = None
        gg.release_memory()
        before = gg.memory()["used"]
        with context:
            loss = gg.square(net(x)).mean()
        loss.backward()
        return gg.memory()["reserved"] - before, loss.item(), [p.grad.numpy() for p in net.parameters()]

    step(gg.enable_grad())  # kernels and their workspaces
    peak, loss, grads = step(gg.enable_grad())
    lower, same, offloaded = step(gg.save_on_cpu())
    assert peak > 8 * x.nbytes
    assert lower <= peak / 2
    assert loss == same
    for g, w in zip(offloaded, grads):
        np.testing.assert_array_equal(g, w)


def test_second_order_and_retained_graphs():
    x, store = leaf(4), Store()
    with store.open():
        y = (gg.exp(x) * gg.sin(x)).sum()
    (g,) = gg.gradients([y], [x], create_graph=True)
    want = 2 * np.exp(x.data) * np.cos(x.data)
    (h,) = gg.gradients([g.sum()], [x], retain_graph=True)
    np.testing.assert_allclose(h.data, want, rtol=1e-12)
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad.data, 2 * np.exp(x.data) * (np.sin(x.data) + np.cos(x.data)), rtol=1e-12)
    with pytest.raises(GraphError, match="already differentiated"):
        y.backward()
    with store.open():
        hessian = gg.hessian(lambda x: (gg.exp(x) * gg.sin(x)).sum())(x.detach())
    np.testing.assert_allclose(np.diag(hessian.data), want, rtol=1e-12)


def test_checkpoint_saves_its_arguments_through_the_hooks():
    x, store = leaf(4), Store()
    segment = gg.checkpoint(lambda x: gg.exp(gg.sin(x)))
    with store.open():
        y = segment(segment(x)).sum()
    inside = len(store.packed)
    y.backward()
    plain = leaf(4)
    gg.exp(gg.sin(gg.exp(gg.sin(plain)))).sum().backward()
    np.testing.assert_array_equal(x.grad.data, plain.grad.data)
    assert any(np.array_equal(p.data, x.data) for p in store.packed)
    assert len(store.packed) == inside  # what the second run saves is none of the context's business
    assert store.unpacked == 2


def test_functions_of_the_user_are_packed():
    class Cube(gg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * 3 * x * x

    x, store = leaf(3), Store()
    Cube.apply(leaf(3)).sum().backward()  # its first call is checked
    with store.open():
        y = Cube.apply(x).sum()
    assert len(store.packed) == 1
    y.backward()
    assert store.unpacked == 1
    np.testing.assert_allclose(x.grad.data, 3 * x.data**2, rtol=1e-14)


def test_inside_jvp_and_vmap():
    x, store = leaf(3), Store()
    with store.open():
        _, curvature = gg.jvp(gg.grad(lambda x: gg.exp(x).sum()), (x.detach(),), (gg.Tensor(np.ones(3)),))
        each = gg.vmap(gg.grad(lambda x: gg.exp(x)))(x.detach())
    np.testing.assert_allclose(curvature.data, np.exp(x.data), rtol=1e-15)
    np.testing.assert_allclose(each.data, np.exp(x.data), rtol=1e-15)


def test_the_innermost_context_counts_and_closing_restores():
    carry = op.carry
    x, outer, inner = leaf(3), Store(), Store()
    with outer.open():
        a = gg.exp(x)
        with inner.open():
            b = gg.sin(x)
        c = gg.exp(b)
    assert (len(outer.packed), len(inner.packed)) == (2, 1)
    (a + b + c).sum().backward()
    assert op.carry is carry
    gg.exp(x)
    assert len(outer.packed) == 2
    with pytest.raises(ZeroDivisionError), outer.open():
        1 / 0  # noqa: B018
    assert op.carry is carry


def test_it_is_the_opening_threads_alone():
    x, store = leaf(3), Store()
    seen = []

    def other():
        gg.exp(leaf(3)).sum().backward()
        seen.append(len(store.packed))

    with store.open():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        gg.exp(x)
    assert seen == [0]
    assert len(store.packed) == 1


def test_pack_may_compute_and_fail():
    x = leaf(3)
    with gg.saved_tensors_hooks(lambda x: gg.exp(x), gg.log):
        y = gg.sin(x)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.data, np.cos(x.data), rtol=1e-14)

    def refuse(x):
        raise fail(DTypeError, "pack", "refused")

    with pytest.raises(DTypeError, match="refused"), gg.saved_tensors_hooks(refuse, gg.log):
        gg.sin(x)


@pytest.mark.parametrize(
    "wrong", [lambda x: x[:1], lambda x: x.astype(gg.float32), lambda x: x.numpy(), lambda x: None]
)
def test_unpack_must_give_what_pack_was_given(wrong):
    x = leaf(3)
    with gg.saved_tensors_hooks(lambda x: x, wrong):
        y = gg.sin(x).sum()
    with pytest.raises(DTypeError, match=r"unpack returned .*pack was given a tensor float64\[3\]") as caught:
        y.backward()
    assert "test_saved_hooks.py" in str(caught.value)


def test_a_write_is_noticed_where_the_tensor_itself_is_kept():
    x = leaf(3)
    y = gg.exp(x)
    with nothing():
        z = gg.sin(y.detach() * 1.0 + x)
        w = z * z
    with gg.no_grad():
        z[0] = 1.0
    with pytest.raises(GraphError, match="overwritten"):
        w.sum().backward()
