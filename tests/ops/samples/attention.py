"""Samples for gpugrad/ops/attention.py. attention_bwd takes no out and no log-sum-exp, or they would be inputs.

Float masks are float32: a constant, which the op does not differentiate.
"""

import numpy as np

from . import S, normal, uniform

PLAIN = {"causal": False, "scale": 0.5}
CAUSAL = {"causal": True, "scale": 0.7}
SEEN = np.array([[True, False, True, True, True], [False] * 5, [True] * 5])  # the second query sees nothing
BIAS = normal(1, 2, 1, 5).astype("float32")

SAMPLES = {
    "attention": [
        S(normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 3), None, **PLAIN),
        S(normal(1, 4, 3, 2), normal(1, 2, 5, 2), normal(1, 2, 5, 3), BIAS[:, :1], **CAUSAL),
        S(normal(1, 2, 5, 2), normal(1, 1, 3, 2), normal(1, 1, 3, 2), None, **CAUSAL),
        S(normal(2, 2, 3, 2), normal(2, 2, 5, 2), normal(2, 2, 5, 2), SEEN[None, None], **PLAIN),
        S(normal(1, 2, 4, 3), normal(1, 2, 5, 3), normal(1, 2, 5, 3), BIAS, **PLAIN),
        S(normal(2, 0, 3, 2), normal(2, 0, 5, 2), normal(2, 0, 5, 2), None, **PLAIN),
    ],
    "attention_bwd": [
        S(normal(1, 2, 3, 2), normal(1, 2, 3, 3), normal(1, 2, 4, 3), normal(1, 2, 4, 2), None, None, None, **CAUSAL),
        S(normal(1, 2, 3, 2), normal(1, 2, 3, 2), normal(1, 1, 5, 2), normal(1, 1, 5, 2), SEEN[None, None], None, None,
          **PLAIN),
        S(normal(1, 2, 3, 2), normal(1, 2, 3, 2), normal(1, 2, 5, 2), normal(1, 2, 5, 2), BIAS, None, None, **PLAIN),
    ],
    "attention_visible": [
        S(normal(1, 2, 3, 2), normal(1, 2, 5, 2), SEEN[None, None], causal=True),
        S(normal(1, 2, 3, 2), normal(1, 2, 5, 2), BIAS, causal=False),
    ],
    "rotary": [
        S(normal(2, 3, 4), uniform(-1.0, 1.0, 3, 2), uniform(-1.0, 1.0, 3, 2), interleaved=False),
        S(normal(3, 4), uniform(-1.0, 1.0, 3, 2), uniform(-1.0, 1.0, 3, 2), interleaved=True),
    ],
}  # fmt: skip
