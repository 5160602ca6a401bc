"""Samples for gpugrad/ops/normalize.py. layer_norm_bwd takes absent statistics, or it would see them as inputs."""

from . import S, normal, positive

LAST = {"axis": (1,), "eps": 1e-5, "centred": True}
RMS = {"axis": (1,), "eps": 1e-5, "centred": False}

GROUPS = {"axis": (2, 3), "eps": 1e-5, "centred": True}
BATCH = {"axis": (0, 2), "eps": 1e-5, "centred": True}

SAMPLES = {
    "layer_norm": [
        S(normal(3, 5), positive(5), normal(5), **LAST),
        S(normal(3, 5), positive(5), None, **LAST),
        S(normal(3, 5), positive(5), None, **RMS),
        S(normal(3, 5), None, None, **LAST),
    ],
    "add_layer_norm": [
        S(normal(3, 5), normal(3, 5), positive(5), normal(5), **LAST),
        S(normal(3, 5), normal(3, 5), positive(5), None, **RMS),
        S(normal(3, 5), normal(3, 5), None, None, **LAST),
    ],
    "layer_norm_bwd": [
        S(normal(3, 5), normal(3, 5), positive(5), None, None, **LAST),
        S(normal(3, 5), normal(3, 5), positive(5), None, None, normal(3, 5), **RMS),
        S(normal(3, 5), normal(3, 5), None, None, None, **LAST),
        S(normal(3, 5), normal(3, 5), positive(3, 1), None, None, **LAST),
    ],
    "group_norm": [
        S(normal(2, 3, 2, 2), positive(3, 2, 1), normal(3, 2, 1), **GROUPS),
        S(normal(2, 3, 2, 2), None, None, **GROUPS),
    ],
    "group_norm_bwd": [
        S(normal(2, 3, 2, 2), normal(2, 3, 2, 2), positive(3, 2, 1), None, None, **GROUPS),
        S(normal(3, 2, 2), normal(3, 2, 2), positive(2, 1), None, None, **BATCH),
        S(normal(3, 2, 2), normal(3, 2, 2), None, None, None, normal(3, 2, 2), **BATCH),
    ],
    "batch_norm": [
        S(normal(4, 3), positive(3), normal(3), axis=(0,), eps=1e-5),
        S(normal(3, 2, 2, 2), positive(2, 1, 1), normal(2, 1, 1), axis=(0, 2, 3), eps=1e-5),
        S(normal(4, 3), positive(3), None, axis=(0,), eps=1e-5),
        S(normal(4, 3), None, None, axis=(0,), eps=1e-5),
    ],
    "batch_norm_eval": [
        S(normal(4, 3, 2), positive(3, 1), normal(3, 1), normal(3, 1), positive(3, 1), eps=1e-5),
        S(normal(4, 3), None, None, normal(3), positive(3), eps=1e-5),
    ],
}
