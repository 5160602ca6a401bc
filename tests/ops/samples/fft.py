"""Samples for gpugrad/ops/fft.py."""

from . import S, normal


def signal(*shape: int):
    """Complex normal numbers."""
    return normal(*shape) + 1j * normal(*shape)


def along(x, **attrs):
    """A transform along one axis."""
    return S(x, **{"n": None, "axis": -1, "norm": "backward", **attrs})


def over(x, **attrs):
    """A transform over several axes."""
    return S(x, **{"s": None, "axes": (0, 1), "norm": "backward", **attrs})


SAMPLES = {
    **{name: [along(signal(3, 5)), along(signal(4), n=6, axis=0, norm="ortho")] for name in ("fft", "ifft")},
    **{
        name: [along(signal(3, 4), n=6), along(signal(4, 2), n=5, axis=0, norm="forward")] for name in ("irfft", "hfft")
    },
    **{name: [along(normal(3, 5)), along(normal(4, 2), n=6, axis=0, norm="ortho")] for name in ("rfft", "ihfft")},
    **{name: [over(signal(3, 4)), over(signal(2, 3), s=(4, 2), norm="forward")] for name in ("fftn", "ifftn")},
    "rfftn": [over(normal(3, 4)), over(normal(2, 3), s=(4, 2), axes=(1, 0), norm="ortho")],
    "irfftn": [over(signal(3, 4)), over(signal(2, 3), s=(4, 5))],
}
