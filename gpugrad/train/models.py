"""The networks that `gpugrad train` knows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from gpugrad import nn
from gpugrad.errors import DomainError, fail


def mlp(shape: Sequence[int], classes: int, hidden: Sequence[int] = (512,)) -> nn.Sequential:
    """Fully connected layers with relu between them. shape: of one input, flattened; output: (N, classes) logits."""
    widths = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def lenet(shape: Sequence[int], classes: int, dropout: float = 0.25) -> nn.Sequential:
    """Two convolutions, each with relu and 2x2 pooling, then three linear layers. LeCun et al., 1998.

    shape: (C, H, W) of one input. From 16 pixels a side the original's sizes (5x5 kernels, 6 and 16 channels); for
    smaller images such as the 8x8 digits 3x3 kernels with padding and 16 and 32 channels. dropout: the share dropped
    before each hidden linear layer, which the original did not have. Raises DomainError below 4 pixels a side.
    """
    channels, height, width = shape
    if min(height, width) < 4:
        raise fail(DomainError, "lenet", f"images of {height}x{width} pixels are too small, expected at least 4x4")
    if min(height, width) >= 16:
        first, second = nn.Conv2d(channels, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        features = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    else:
        first, second = nn.Conv2d(channels, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        features = 32 * (height // 2 // 2) * (width // 2 // 2)
    return nn.Sequential(
        first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(features, 120), nn.ReLU(), nn.Dropout(dropout), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, classes),
    )  # fmt: skip
