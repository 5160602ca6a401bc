"""Samples for gpugrad/ops/loss.py. softmax_xent_bwd takes no log-sum-exp, or it would see it as an input."""

import numpy as np

from . import S, ints, normal, positive, uniform

PLAIN = {"ignore_index": -100, "smoothing": 0.0}
SMOOTH = {"ignore_index": 1, "smoothing": 0.2}
SOFT = {"ignore_index": -100, "smoothing": 0.1}
LABELS = np.array([0, 4, 1, 2])  # one of each kind: 1 is the ignored class of SMOOTH

SAMPLES = {
    "softmax_xent": [
        S(normal(4, 5), LABELS, None, **PLAIN),
        S(normal(4, 5), LABELS, positive(5), **PLAIN),
        S(normal(4, 5), LABELS, positive(5), **SMOOTH),
        S(normal(4, 5), LABELS, None, **SMOOTH),
        S(normal(4, 5), uniform(0.1, 1.0, 4, 5), None, **PLAIN),
        S(normal(4, 5), uniform(0.1, 1.0, 4, 5), positive(5), **SOFT),
        S(normal(3, 100), ints(0, 100, 3), None, **SMOOTH, second=False),  # wide rows; the rule is the one above
    ],
    "softmax_xent_bwd": [
        S(normal(4), normal(4, 5), LABELS, None, None, **PLAIN),
        S(normal(4), normal(4, 5), LABELS, positive(5), None, **SMOOTH),
        S(normal(4), normal(4, 5), uniform(0.1, 1.0, 4, 5), positive(5), None, **SOFT),
    ],
    "xent_targets": [S(uniform(0.1, 1.0, 3, 4), classes=4, ignore_index=-100, smoothing=0.1, dtype="float64")],
    "bce_logits": [S(normal(3, 4), uniform(0.0, 1.0, 3, 4)), S(normal(3, 4), uniform(0.0, 1.0, 4))],
}
