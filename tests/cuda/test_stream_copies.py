"""Streams and copies on the double and on a GPU, where a missing wait is likely to show; see also test_streams."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import data, nn, optim
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler
from gpugrad.train import Trainer

pytestmark = [pytest.mark.skipif(compiler() is None, reason="no C++ compiler"), pytest.mark.usefixtures("gpu")]


def slow(gpu):
    """The size of work that takes a GPU milliseconds."""
    return 16 if gpu.xp is fake_cupy else 4096


def test_a_stream_waits_for_slow_work(gpu):
    n = slow(gpu)
    side, here = gg.Stream(), gg.current_stream()
    mean = gg.full((n, n), 1 / n, dtype="float32", device="cuda")
    for i in range(5):
        x = gg.full((n, n), float(i), dtype="float32", device="cuda")
        side.wait(here)
        with side:
            for _ in range(8):
                x = mean @ x
            moment = side.record()
        here.wait(moment)
        y = x + 1
        here.keep(x)
        del x
        assert np.allclose(y.numpy(), i + 1, rtol=1e-5)
        assert moment.done


def test_events_measure_the_work_between_them(gpu):
    n = slow(gpu)
    x, stream = gg.ones((n, n), device="cuda"), gg.current_stream()
    marks = [stream.record()]
    for count in (1, 50):
        for _ in range(count):
            x = x @ x / n
        marks.append(stream.record())
    stream.synchronize()
    assert stream.done
    start, middle, end = marks
    assert middle.seconds_since(start) > 0
    assert end.seconds_since(start) > end.seconds_since(middle) > 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_copies_that_do_not_wait(gpu, dtype):
    n = slow(gpu) ** 2
    values = np.random.default_rng(0).integers(0, 2, n).astype(dtype)
    for i in range(4):
        there = gg.asarray(np.roll(values, i)).pin_memory().to("cuda", non_blocking=True)
        back = gg.flip(there).to("cpu", non_blocking=True)
        del there
        gg.current_stream().synchronize()
        assert np.array_equal(back.numpy(), np.roll(values, i)[::-1])


def test_training_on_batches_that_are_copied_ahead(gpu):
    x, y = data.blobs(300, classes=4, features=6, spread=4.0, seed=0)

    def train(loader):
        gg.random.seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4)).to("cuda")
        Trainer(model, optim.Adam(model.parameters(), lr=0.01), replay=True).fit(loader, 2)
        return [p.numpy().tobytes() for p in model.parameters()]

    resident = train(data.ArrayLoader(x, y, batch_size=64, device="cuda"))
    assert train(data.Prefetch(data.ArrayLoader(x, y, batch_size=64))) == resident


def test_pytorch_and_gpugrad_in_one_stream(gpu):
    torch = pytest.importorskip("torch")
    if gpu.xp is fake_cupy or not torch.cuda.is_available():
        pytest.skip("needs PyTorch with a GPU")
    theirs = torch.cuda.Stream()
    for i in range(5):
        with torch.cuda.stream(theirs), gg.Stream(external=theirs.cuda_stream):
            a = torch.full((2048, 2048), float(i), device="cuda")
            for _ in range(4):
                a = a @ torch.full((2048, 2048), 1 / 2048, device="cuda")
            b = gg.from_dlpack(a) + 1
            c = torch.from_dlpack(b) * 2
            assert torch.allclose(c, torch.full_like(c, 2 * (i + 1)))
