"""A first minute with the installed wheel, run from an unrelated folder: import, learn a little, find the kernels."""

import sys
from pathlib import Path

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.kernel import find_kernels

assert Path(gg.__file__).is_relative_to(sys.prefix), f"gpugrad comes from {gg.__file__}, not from the wheel"
assert (find_kernels() / "loss.cu").is_file(), "the wheel has no kernels"
assert "cupy" not in sys.modules, "importing gpugrad imported CuPy"

g = gg.random.Generator(0)
x, target = g.uniform((64, 4)), g.integers(0, 3, (64,))
model = nn.Sequential(nn.Linear(4, 16, generator=g), nn.ReLU(), nn.Linear(16, 3, generator=g))
optimizer = optim.Adam(model.named_parameters(), lr=0.05)
losses = []
for _ in range(60):
    loss = nn.functional.cross_entropy(model(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.8 * losses[0], losses
print(f"gpugrad {gg.__version__} works from {Path(gg.__file__).parent.name}/: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
