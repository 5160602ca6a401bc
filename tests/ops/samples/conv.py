"""Samples for gpugrad/ops/conv.py. max_pool2d_bwd and _pick take the pooled image beside the image it came from."""

import numpy as np

from gpugrad.op import TABLE

from . import S, distinct, normal

PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
FANCY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
POOL = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
OVERLAP = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1), "dilation": (1, 2)}


def pooled(x, **attrs):
    """(image, its maxima)."""
    return x, TABLE["max_pool2d"].impls[np.ndarray](x, ceil_mode=False, **attrs)


SAMPLES = {
    "conv2d": [S(normal(2, 2, 4, 5), normal(3, 2, 2, 3), **PLAIN), S(normal(2, 4, 5, 5), normal(4, 2, 3, 2), **FANCY)],
    "conv2d_input": [
        S(normal(2, 3, 3, 3), normal(3, 2, 2, 3), shape=(4, 5), **PLAIN),
        S(normal(2, 4, 3, 7), normal(4, 2, 3, 2), shape=(5, 5), **FANCY),
        S(normal(2, 3, 3, 2), normal(3, 2, 2, 2), shape=(4, 3), **{**PLAIN, "padding": (1, 1), "dilation": (2, 2)}),
    ],
    "conv2d_weight": [
        S(normal(2, 3, 3, 3), normal(2, 2, 4, 5), kernel=(2, 3), **PLAIN),
        S(normal(2, 4, 3, 7), normal(2, 4, 5, 5), kernel=(3, 2), **FANCY),
        S(normal(2, 3, 3, 2), normal(2, 2, 4, 3), kernel=(2, 2), **{**PLAIN, "padding": (1, 1), "dilation": (2, 2)}),
    ],
    "max_pool2d": [
        S(distinct(2, 2, 4, 6), ceil_mode=False, **POOL),
        S(distinct(1, 2, 5, 5), ceil_mode=True, **POOL),
        S(distinct(1, 2, 5, 4), ceil_mode=False, **OVERLAP),
    ],
    "max_pool2d_bwd": [
        S(normal(2, 2, 2, 3), *pooled(distinct(2, 2, 4, 6), **POOL), **POOL),
        S(normal(1, 2, 3, 4), *pooled(distinct(1, 2, 5, 4), **OVERLAP), **OVERLAP),
    ],
    "max_pool2d_pick": [
        S(normal(2, 2, 4, 6), *pooled(distinct(2, 2, 4, 6), **POOL), **POOL),
        S(normal(1, 2, 5, 4), *pooled(distinct(1, 2, 5, 4), **OVERLAP), **OVERLAP),
    ],
    "avg_pool2d": [
        S(normal(2, 2, 4, 6), kernel=(2, 2), stride=(2, 2), padding=(0, 0)),
        S(normal(1, 2, 5, 4), kernel=(3, 2), stride=(2, 1), padding=(1, 1)),
    ],
    "avg_pool2d_bwd": [
        S(normal(2, 2, 2, 3), kernel=(2, 2), stride=(2, 2), padding=(0, 0), shape=(4, 6)),
        S(normal(1, 2, 3, 5), kernel=(3, 2), stride=(2, 1), padding=(1, 1), shape=(5, 4)),
        S(normal(1, 2, 3, 6), kernel=(4, 5), stride=(2, 1), padding=(2, 2), shape=(5, 6)),
    ],
    "adaptive_avg_pool2d": [S(normal(2, 2, 5, 7), size=(3, 2)), S(normal(1, 2, 2, 3), size=(4, 5))],
    "adaptive_avg_pool2d_bwd": [S(normal(2, 2, 3, 2), shape=(5, 7)), S(normal(1, 2, 4, 5), shape=(2, 3))],
}
