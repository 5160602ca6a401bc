"""How many windows of a convolution or a pooling lie along the axes of an image."""

from __future__ import annotations

Pair = tuple[int, int]


def reach(kernel: int, dilation: int) -> int:
    """Pixels from the first to the last tap of a window."""
    return dilation * (kernel - 1) + 1


def counts(
    shape: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1), ceil_mode: bool = False
) -> Pair:
    """Windows along each axis; with ceil_mode also a partial last one that starts left of the right frame."""
    out = []
    for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation):
        span = n + 2 * p - reach(k, d)
        m = (-(-span // s) if ceil_mode else span // s) + 1
        out.append(m - 1 if ceil_mode and (m - 1) * s >= n + p else m)
    return out[0], out[1]
