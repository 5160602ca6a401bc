"""Gradients through a simulation: with which velocity does a probe reach a planet beyond the sun?

The probe falls freely for 80 leapfrog steps in the field of a sun and of a planet that circles it. The squared
distance from the planet at the end is differentiated through all of them. Units: the sun's mass and the earth's
distance are 1, a year takes 2 pi.
"""

import numpy as np

from gpugrad import grad

STEPS, DT = 80, 0.03
MASS, RADIUS = 1e-3, 1.6  # of the planet, in the sun's
PROBE = np.array([1.0, 0.0])


def planet(time):
    angle = 1.5 + time / RADIUS**1.5  # Kepler's third law
    return RADIUS * np.array([np.cos(angle), np.sin(angle)])


def pull(position, time):
    """Acceleration by the sun and the planet."""
    away = position - planet(time)
    return -position / np.sum(position**2) ** 1.5 - MASS * away / (np.sum(away**2) + 1e-3) ** 1.5


def flight(velocity):
    """Where the probe is at the end."""
    position = PROBE
    for i in range(STEPS):
        velocity = velocity + 0.5 * DT * pull(position, i * DT)
        position = position + DT * velocity
        velocity = velocity + 0.5 * DT * pull(position, (i + 1) * DT)
    return position


def objective(velocity):
    """The squared distance from the planet at the end."""
    return np.sum((flight(velocity) - planet(STEPS * DT)) ** 2)


start = (np.array([0.0, 1.0]),)


def main():
    slope = grad(objective)
    velocity, step = start[0], 0.02
    g = slope(velocity)
    first = np.sqrt(objective(velocity))
    for _ in range(25):
        moved = -step * g
        velocity = velocity + moved
        turned = slope(velocity) - g
        g = g + turned
        step = np.dot(moved, moved) / np.abs(np.dot(moved, turned))  # Barzilai and Borwein's: the curvature just met
    miss = np.sqrt(objective(velocity))
    assert first > 0.5
    assert miss < 1e-4
    print(f"orbit: misses by {first:.3f} at first, by less than 0.0001 with velocity {np.linalg.norm(velocity):.3f}")


if __name__ == "__main__":
    main()
