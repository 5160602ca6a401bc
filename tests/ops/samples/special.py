"""Samples for gpugrad/ops/special.py and integrals.py."""

import numpy as np

import gpugrad.special  # noqa: F401 - fills the table

from . import S, away, normal, positive, uniform

SAMPLES = {
    "lgamma": [S(positive(3, 4)), S(uniform(2, 14, 6)), S(uniform(-1.8, -1.2, 3))],
    "polygamma": [
        S(positive(3, 4), n=0),
        S(uniform(2, 14, 6), n=1),
        S(uniform(-1.7, -1.3, 3), n=0),
        S(uniform(-1.7, -1.3, 3), n=2),
    ],
    "erfcx": [S(normal(3, 4)), S(uniform(5, 40, 4)), S(uniform(-3, -2, 3))],
    "erfcinv": [S(uniform(0.1, 1.9, 3, 4)), S(uniform(0.1, 0.2, 3))],
    "ndtr": [S(normal(3, 4))],
    "log_ndtr": [S(normal(3, 4)), S(uniform(-30, -3, 4))],
    "i0e": [S(away(3, 4)), S(uniform(20, 30, 4))],
    "i1e": [S(away(3, 4)), S(uniform(20, 30, 4))],
    "betaln": [
        S(positive(3, 4), positive(4)),
        S(uniform(10, 30, 4), positive(2, 1)),
        S(positive(3), uniform(10, 30, 3)),
    ],
    "gammainc": [
        S(positive(3, 4), positive(4), upper=False, n=0),
        S(uniform(8, 14, 5), uniform(8, 14, 5), upper=True, n=0),
        S(uniform(0.2, 0.9, 4), uniform(0.1, 0.4, 4), upper=False, n=1),
        S(uniform(2, 3, 3), uniform(3, 5, 3), upper=True, n=2),
    ],
    "gamma_density": [S(positive(3, 4), positive(4)), S(uniform(9, 12, 4), uniform(6, 14, 4))],
    # second derivatives in a and b are refused
    "betainc": [
        S(positive(3, 4), positive(4), uniform(0.2, 0.8, 3, 4), wrt="", second=False),
        S(uniform(8, 14, 5), positive(5), uniform(0.6, 0.95, 5), wrt="", second=False),
        S(np.array(3), np.array([2, 1]), uniform(0.2, 0.8, 2), wrt=""),
        S(np.array(3), np.array([2, 1]), uniform(0.2, 0.8, 2), wrt="a"),
        S(np.array([2, 12]), np.array(11), uniform(0.2, 0.8, 2), wrt="b"),
    ],
    "beta_density": [
        S(positive(3, 4), positive(4), uniform(0.2, 0.8, 3, 4)),
        S(uniform(10, 14, 5), uniform(10, 14, 5), uniform(0.3, 0.7, 5)),
    ],
}
