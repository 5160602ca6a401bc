"""Public functions of the Array API on the CUDA device: the same program, the same results, which stay there."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import linalg
from gpugrad.testing.emulator import compiler

pytestmark = [pytest.mark.skipif(compiler() is None, reason="no C++ compiler"), pytest.mark.usefixtures("gpu")]
RNG = np.random.default_rng(0)
A = RNG.normal(size=(3, 4)).astype("float32")
C = (RNG.normal(size=(3, 3)) + 1j * RNG.normal(size=(3, 3))).astype("complex64")
N = np.array([[3, 1, 3], [0, 1, 7]])
SPECIAL = np.array([-np.inf, -2.5, -0.0, 0.0, 1.0, np.inf, np.nan], "float32")
INFINITE = np.array([complex(a, b) for a in SPECIAL[[0, 2, 4, 5, 6]] for b in SPECIAL[[0, 3, 4, 6]]], "complex64")

PROGRAMS = [
    (SPECIAL, lambda x: gg.floor_divide(x, gg.reshape(x, (-1, 1)))), (SPECIAL, lambda x: x // 2.0),
    (SPECIAL, lambda x: 2.0 // x), (SPECIAL, gg.sign), (INFINITE, gg.expm1), (INFINITE, gg.tanh), (A, gg.expm1),
    (N, lambda x: gg.clip(x, 1, 3)), (A, lambda x: gg.where(x > 0, x, 2.0)), (A, lambda x: gg.where(x > 0, 1.0, x)),
    (N, lambda x: gg.unique_all(x)), (N, gg.unique_values), (N, lambda x: gg.isin(x, gg.reshape(x[1], (-1,)))),
    (N[0], lambda x: gg.searchsorted(gg.sort(x), 2)), (A[0], lambda x: gg.searchsorted(gg.sort(x), 0.5, side="right")),
    (N, lambda x: gg.nonzero(x)), (N[0], lambda x: gg.searchsorted(x, x, sorter=gg.argsort(x))),
    (A, lambda x: gg.cumulative_prod(x, axis=1, include_initial=True)),
    (A, lambda x: gg.cumulative_sum(x, axis=0, include_initial=True)),
    (A, lambda x: gg.reshape(x.mT, (-1,), copy=True)),
    (A, lambda x: gg.astype(x, gg.complex64)), (A, lambda x: gg.astype(x, gg.float32)), (N, lambda x: gg.vecdot(x, x)),
    (A, lambda x: gg.repeat(x, gg.asarray([2, 0, 1]), axis=0)), (N, lambda x: gg.take_along_axis(x, x % 3, axis=1)),
    (C, lambda x: gg.vecdot(x, x)), (C, linalg.inv), (C, linalg.pinv), (C, linalg.matrix_rank), (C, linalg.matrix_norm),
    (C, linalg.svdvals), (C, linalg.slogdet), (C, lambda x: linalg.cholesky(gg.conj(x).mT @ x, upper=True)),
    (C, lambda x: linalg.eigvalsh(gg.conj(x).mT @ x)), (A, lambda x: gg.matmul(*linalg.qr(x))),
    (A, lambda x: gg.matmul(*linalg.qr(x.mT, mode="complete"))), (A, lambda x: linalg.svd(x).S),
    (A, lambda x: linalg.pinv(x, rtol=1e-3)), (C, lambda x: linalg.trace(x, offset=1, dtype=gg.complex128)),
    (A, gg.fft.fft), (A, lambda x: gg.fft.rfft(x, n=6, axis=0, norm="ortho")), (C, lambda x: gg.fft.irfft(x)),
    (C, lambda x: gg.fft.hfft(x)), (A, gg.fft.ihfft), (C, gg.fft.ifftn), (A, lambda x: gg.fft.rfftn(x, s=(2, 6))),
    (C, gg.fft.irfftn), (A, gg.fft.fftshift), (A, lambda x: gg.linspace(0, 1, 5, device=x.device)),
    (A, lambda x: gg.fft.fftfreq(5, device=x.device)), (A, lambda x: gg.eye(3, k=-1, device=x.device)),
    (A, lambda x: gg.mean(x[:0], axis=0)), (A, lambda x: gg.var(x[:, :0])),
    (A, lambda x: gg.std(x, axis=0, correction=3)),
    (A, lambda x: x[gg.asarray([2, 0], device=x.device)]), (A, lambda x: x[x > 0]), (A, lambda x: x[..., None, ::-1]),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("k", range(len(PROGRAMS)))
def test_same_results_on_both_devices(k):
    array, program = PROGRAMS[k]
    here, there = ([r] if isinstance(r, gg.Tensor) else list(r) for r in
                   (program(gg.asarray(array, device=d)) for d in ("cpu", "cuda")))  # fmt: skip
    assert len(here) == len(there)
    for a, b in zip(here, there):
        assert (b.device, b.dtype, b.shape) == ("cuda:0", a.dtype, a.shape)
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=2e-5, atol=2e-5)


def test_the_default_device_is_one_of_the_devices():
    info = gg.__array_namespace_info__()
    assert info.default_device() == "cpu"
    gg.set_default_device("cuda")
    try:
        assert info.default_device() == gg.ones(1).device == "cuda:0"
        assert info.default_device() in info.devices()
    finally:
        gg.set_default_device("cpu")


def test_inspection_lists_the_device():
    assert gg.__array_namespace_info__().devices()[:2] == ["cpu", "cuda:0"]
    x = gg.asarray(A).to_device("cuda")
    assert x.device == "cuda:0"
    np.testing.assert_array_equal(x.to_device("cpu").numpy(), A)
