"""Gradients with respect to the input: which pixels a score depends on, and ascent in the manner of DeepDream."""

from itertools import pairwise

import numpy as np

import gpugrad as gg
from gpugrad import nn

rng = np.random.default_rng(0)
g = gg.random.Generator(0)
model = nn.Sequential(nn.Linear(16, 32, generator=g), nn.Tanh(), nn.Linear(32, 3, generator=g))
for p in model.parameters():
    p.requires_grad = False  # only the input varies

# Saliency: |d score / d pixel|. A pixel that the network cannot see has none.
model[0].weight.data[:, 5] = 0
image = gg.tensor(rng.normal(size=(1, 16)), dtype=gg.float32, requires_grad=True)
model(image)[0, 1].backward()
saliency = gg.abs(image.grad).numpy()[0]
assert saliency[5] == 0
assert (np.delete(saliency, 5) > 0).all()
assert all(p.grad is None for p in model.parameters())

# Ascent: follow the gradient, and the activation rises at every step.
dream, activations = image.detach(), []
for _ in range(50):
    activation, slope = gg.value_and_grad(lambda x: model(x)[0, 1])(dream)
    activations.append(activation.item())
    dream = dream + 0.05 * slope / (gg.norm(slope) + 1e-8)
assert all(b > a for a, b in pairwise(activations))

print(f"saliency: ascent raised the activation from {activations[0]:.3f} to {activations[-1]:.3f}")
