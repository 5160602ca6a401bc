"""Samples for gpugrad/ops/special.py."""

from . import S, positive, uniform

SAMPLES = {
    "lgamma": [S(positive(3, 4)), S(uniform(2, 14, 6)), S(uniform(-1.8, -1.2, 3))],
    "polygamma": [
        S(positive(3, 4), n=0),
        S(uniform(2, 14, 6), n=1),
        S(uniform(-1.7, -1.3, 3), n=0),
        S(uniform(-1.7, -1.3, 3), n=2),
    ],
}
