"""Learning-rate schedules, and the conditions of Robbins and Monro: the rates sum to infinity, their squares do not."""

import numpy as np

import gpugrad as gg
from gpugrad import optim
from gpugrad.optim import schedules
from gpugrad.optim.schedules import robbins_monro

for shape, expected in [
    (schedules.Constant(), (True, False)),  # never settles
    (schedules.TimeDecay(0.1, power=0.5), (True, False)),  # falls too slowly
    (schedules.TimeDecay(0.1, power=0.75), (True, True)),
    (schedules.TimeDecay(0.1), (True, True)),
    (schedules.TimeDecay(0.1, power=2.0), (False, True)),  # stops before it arrives
    (schedules.Exponential(0.99), (False, True)),
]:
    print(shape, "sum diverges, sum of squares converges:", robbins_monro(shape))
    assert robbins_monro(shape) == expected


# The mean of a noisy signal by stochastic gradient descent, from 8: loss (w - sample)^2 / 2 with samples 3 + noise.
def estimate(shape, steps=1000):
    rng = np.random.default_rng(0)
    w = gg.tensor(8.0, dtype=gg.float64, requires_grad=True)
    optimizer = optim.SGD([w], lr=1.0)
    schedule = optim.Schedule(optimizer, shape)
    samples = rng.normal(3.0, 1.0, steps)
    for sample in samples:
        optimizer.zero_grad()
        (0.5 * (w - sample) ** 2).backward()
        optimizer.step()
        schedule.step()
    return w.item(), samples


# Rates 1 / (t + 1) satisfy both: the estimate is exactly the mean of the samples.
right, samples = estimate(schedules.TimeDecay(1.0))
assert np.isclose(right, samples.mean(), rtol=1e-12)
# A constant rate keeps following the noise; a rate that falls too fast is stuck on the way.
noisy, _ = estimate(schedules.Constant(0.9))
stuck, _ = estimate(lambda step: 0.1 * schedules.Exponential(0.8)(step))
print(f"mean of the signal 3: estimates {right:.3f}, constant rate {noisy:.3f}, falling too fast {stuck:.3f}")
assert abs(right - 3) < 0.1 < abs(noisy - 3)
assert stuck > 4
