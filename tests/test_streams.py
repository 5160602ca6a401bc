"""Streams, events and pinned memory on the CPU, where all work is done when a call returns."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg


def test_a_program_with_streams_runs_on_the_cpu_as_it_is():
    stream = gg.Stream("cpu")
    assert stream.raw is None
    x = gg.asarray(np.arange(3.0)).pin_memory().to("cpu", non_blocking=True)
    stream.wait(gg.current_stream("cpu"))
    with stream:
        y = x * 2
        event = stream.record()
    gg.current_stream("cpu").wait(event)
    gg.current_stream("cpu").keep(y)
    event.synchronize()
    stream.synchronize()
    assert event.done
    assert stream.done
    assert (y + 1).tolist() == [1, 3, 5]
    assert repr(stream) == "Stream('cpu')"


def test_events_tell_the_time():
    first, then = (gg.current_stream("cpu").record() for _ in range(2))
    assert then.seconds_since(first) >= 0
    assert first.seconds_since(then) <= 0


@pytest.mark.skipif(gg.is_available("cuda"), reason="there is a GPU")
def test_without_a_gpu():
    x = gg.ones(3)
    assert x.pin_memory() is x
    for make in (gg.Stream, gg.current_stream):
        with pytest.raises(gg.errors.DeviceError):
            make()
    with pytest.raises(gg.errors.DeviceError, match="tpu"):
        gg.Stream("tpu")
