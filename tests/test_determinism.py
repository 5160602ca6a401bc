"""Determinism by default (D11, P1): one seed, one bit pattern."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import gpugrad as gg
from gpugrad import nn, optim

ROOT = Path(__file__).parent.parent
PROGRAM = "import tests.test_determinism as t; print(t.one_step())"


def one_step() -> str:
    """Hash of everything after one training step of a small network with dropout."""
    generator = gg.random.Generator(5)
    gg.random.seed(5)
    model = nn.Sequential(
        nn.Linear(20, 32, generator=generator), nn.ReLU(), nn.Dropout(0.3, generator=generator),
        nn.Linear(32, 5, generator=generator),
    )  # fmt: skip
    optimizer = optim.Adam(model.named_parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    x, y = gg.tensor(rng.normal(size=(64, 20)).astype("float32")), gg.tensor(rng.integers(0, 5, 64))
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    digest = hashlib.sha256(loss.numpy().tobytes())
    for _, p in sorted(model.named_parameters()):
        digest.update(p.numpy().tobytes())
        digest.update(p.grad.numpy().tobytes())
    return digest.hexdigest()


def test_a_thousand_training_steps_give_one_bit_pattern():
    assert len({one_step() for _ in range(1000)}) == 1


def test_another_process_gives_the_same_bits():
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, cwd=ROOT)
        assert done.stdout.strip() == one_step(), done.stderr
