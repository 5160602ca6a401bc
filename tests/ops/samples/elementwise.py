"""Samples for gpugrad/ops/elementwise.py."""

import numpy as np

from . import S, away, distinct, ints, normal, positive, uniform

flags = np.array([[True, False, True, True], [False, True, False, True], [True, True, False, False]])
inside = uniform(-0.8, 0.8, 3, 4)
near_zero = np.array([0.0, 1e-9, -1e-3, 0.02, 0.5, -1.3, 2.0])

SAMPLES = {
    # helpers of rules
    "absorb": [S(away(3, 4), normal(3, 4)), S(away(4), normal(3, 4))],
    "absorbed": [S(normal(3, 4), normal(3, 4), infinite=True)],
    "quotient": [S(away(3, 4), positive(3, 4)), S(away(4), away(3, 4, gap=0.5))],
    # arithmetic
    "add": [S(normal(3, 4), normal(4))],
    "subtract": [S(normal(3, 4), normal(3, 1))],
    "multiply": [S(normal(3, 4), normal(4))],
    "divide": [S(normal(3, 4), positive(4)), S(normal(), positive())],
    "floor_divide": [S(normal(3, 4), positive(4)), S(ints(-9, 9, 5), ints(1, 4, 5))],
    "remainder": [S(np.array([1.3, -2.2, 7.7, -0.4]), np.array([1.0, 0.9, -2.5, -3.0]))],
    "negative": [S(normal(3))],
    "positive": [S(normal(3))],
    "reciprocal": [S(positive(3, 4)), S(-positive(3))],
    "square": [S(normal(3, 4))],
    "sqrt": [S(positive(3, 4))],
    "cbrt": [S(away(3, 4, gap=0.3))],
    "abs": [S(away(3, 4))],
    "sign": [S(away(3, 4))],
    "signbit": [S(normal(4))],
    "copysign": [S(away(3, 4), away(3, 4))],
    "nextafter": [S(normal(4), normal(4))],
    "hypot": [S(away(3, 4, gap=0.3), normal(4))],
    "pow": [
        S(positive(3, 4), normal(4)), S(positive(3), normal(3)), S(positive(2), away(2)),
        *(S(positive(4), y) for y in (-1.5, 0, 0.5, 1.0, 3)),
    ],
    # exponentials and logarithms
    "exp": [S(normal(3, 4))],
    "exp2": [S(normal(3, 4))],
    "expm1": [S(normal(3, 4))],
    "log": [S(positive(3, 4))],
    "log2": [S(positive(3, 4))],
    "log10": [S(positive(3, 4))],
    "log1p": [S(positive(3, 4)), S(uniform(-0.5, 0.5, 3))],
    "logaddexp": [S(normal(3, 4), normal(4))],
    "logaddexp2": [S(normal(3, 4), normal(4))],
    "xlogy": [S(away(3, 4), positive(4))],
    # trigonometry
    "sin": [S(normal(3, 4))],
    "cos": [S(normal(3, 4))],
    "tan": [S(uniform(-1, 1, 3, 4))],
    "asin": [S(inside)],
    "acos": [S(inside)],
    "atan": [S(normal(3, 4))],
    "atan2": [S(away(3, 4, gap=0.3), away(3, 4, gap=0.3))],
    "sinh": [S(normal(3, 4))],
    "cosh": [S(normal(3, 4))],
    "tanh": [S(normal(3, 4))],
    "asinh": [S(normal(3, 4))],
    "acosh": [S(uniform(1.3, 3, 3, 4))],
    "atanh": [S(inside)],
    "deg2rad": [S(normal(3))],
    "rad2deg": [S(normal(3))],
    "sinc": [S(normal(3, 4)), S(near_zero)],
    # rounding: away from the jumps
    "floor": [S(np.array([-1.7, -0.4, 0.3, 2.6]))],
    "ceil": [S(np.array([-1.7, -0.4, 0.3, 2.6]))],
    "trunc": [S(np.array([-1.7, -0.4, 0.3, 2.6]))],
    "round": [S(np.array([-1.7, -0.4, 0.3, 2.6]))],
    "rint": [S(np.array([-1.7, -0.4, 0.3, 2.6]))],
    # error function
    "erf": [S(normal(3, 4)), S(uniform(-3, 3, 12))],
    "erfc": [S(normal(3, 4)), S(uniform(-3, 5, 12))],
    "erfinv": [S(inside), S(uniform(-0.99, 0.99, 8))],
    # choice
    "where": [
        S(flags, normal(3, 4), normal(4)), S(flags[0], normal(3, 4), normal()),
        S(ints(0, 2, 3), normal(3), normal(3)),
    ],
    "maximum": [S(distinct(3, 4), distinct(4) + 0.05)],
    "minimum": [S(distinct(3, 4), distinct(4) + 0.05)],
    "fmax": [S(distinct(3, 4), distinct(4) + 0.05)],
    "fmin": [S(distinct(3, 4), distinct(4) + 0.05)],
    "maximum_bound": [S(distinct(3, 4), distinct(4) + 0.05)],
    "minimum_bound": [S(distinct(3, 4), distinct(4) + 0.05)],
    "fmax_bound": [S(distinct(3, 4), distinct(4) + 0.05)],
    "fmin_bound": [S(distinct(3, 4), distinct(4) + 0.05)],
    "clip": [
        S(away(3, 4, points=(-0.5, 0.7)), np.array(-0.5), np.array(0.7)),
        S(away(5, points=(0.5,)), None, np.full(5, 0.5)), S(normal(3), None, None),
    ],
    "heaviside": [S(away(3, 4), normal(4))],
    "nan_to_num": [S(normal(3), nan=0.0, posinf=None, neginf=None)],
    # comparison, logic, bits, complex
    "equal": [S(ints(0, 3, 6), ints(0, 3, 6))],
    "not_equal": [S(ints(0, 3, 6), ints(0, 3, 6))],
    "less": [S(normal(3, 4), normal(4))],
    "less_equal": [S(normal(3, 4), normal(4))],
    "greater": [S(normal(3, 4), normal(4))],
    "greater_equal": [S(normal(3, 4), normal(4))],
    "isnan": [S(np.array([1.0, np.nan, np.inf]))],
    "isinf": [S(np.array([1.0, np.nan, -np.inf]))],
    "isfinite": [S(np.array([1.0, np.nan, np.inf]))],
    "logical_and": [S(flags[0], flags[1])],
    "logical_or": [S(flags[0], flags[1])],
    "logical_xor": [S(flags[0], flags[1])],
    "logical_not": [S(flags[0]), S(normal(3))],
    "bitwise_and": [S(ints(0, 99, 5), ints(0, 99, 5)), S(flags[0], flags[1])],
    "bitwise_or": [S(ints(0, 99, 5), ints(0, 99, 5))],
    "bitwise_xor": [S(ints(0, 99, 5), ints(0, 99, 5))],
    "bitwise_invert": [S(ints(-9, 99, 5)), S(flags[0])],
    "bitwise_left_shift": [S(ints(0, 99, 5), ints(0, 5, 5))],
    "bitwise_right_shift": [S(ints(0, 99, 5), ints(0, 5, 5))],
    "real": [S(normal(3))],
    "imag": [S(normal(3))],
    "conj": [S(normal(3))],
}  # fmt: skip
