"""Determinism by default (D11, P1, P2): one seed, one bit pattern."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import kernel, nn, optim
from gpugrad.backends import cuda
from gpugrad.nn import functional as F
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler

from .cuda.conftest import registered

ROOT = Path(__file__).parent.parent
PROGRAM = "import tests.test_determinism as t; print(t.one_step('cpu')())"
CPU_STEPS, DOUBLE_STEPS = 1000, 100


class Net(nn.Module):
    """A bit of everything that sums: products, a convolution, embedding rows, normalisation, attention weights."""

    def __init__(self):
        super().__init__()
        self.table, self.conv = nn.Embedding(6, 8), nn.Conv2d(1, 2, 3, padding=1)
        self.norm, self.drop, self.out = nn.LayerNorm(16), nn.Dropout(0.3), nn.Linear(16, 4)

    def forward(self, ids):
        x = self.table(ids)[:, None]  # (N, 1, 3, 8), each id several times
        x = F.max_pool2d(gg.relu(self.conv(x)), (3, 1)).reshape(len(ids), 16)
        x = gg.softmax(self.drop(self.norm(x)), axis=1)
        return self.out(x)


def one_step(device):
    """A function that makes one training step from always the same state, and gives a digest of all that came out."""
    gg.random.seed(1)
    model = Net().to(device=device)
    params = list(model.parameters())
    optimizer, scaler = optim.AdamW(params, lr=0.1), optim.GradScaler(1024.0)
    rng = np.random.default_rng(2)
    ids = gg.tensor(rng.integers(0, 6, (33, 3)), device=device)
    labels = gg.tensor(rng.integers(0, 4, 33), device=device)

    def step():
        gg.random.seed(3)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = optim.clip_grad_norm(params, 0.1)
        scaler.step(optimizer)
        scaler.update()
        return [loss, norm, *(p.grad for p in params), *params]

    step()  # Adam's moments differ from zero
    values, state = [p.numpy(copy=True) for p in params], optimizer.state_dict()

    def again():
        with gg.no_grad():
            for p, value in zip(params, values):
                p[...] = gg.asarray(value, device=device)
        optimizer.load_state_dict(state)
        found = [t.numpy() for t in step()]
        assert all(np.isfinite(a).all() for a in found)
        return hashlib.sha256(b"".join(a.tobytes() for a in found)).hexdigest()

    return again


def test_a_thousand_steps_have_one_bit_pattern():
    step = one_step("cpu")
    assert len({step() for _ in range(CPU_STEPS)}) == 1


def test_another_process_gives_the_same_bits():
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, cwd=ROOT)
        assert done.stdout.strip() == one_step("cpu")(), done.stderr


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_the_order_of_threads_and_blocks_leaves_no_trace():
    with registered(cuda.load(fake_cupy)):
        step, found = one_step("cuda"), set()
        for seed in range(DOUBLE_STEPS):
            with fake_cupy.scheduled(schedule="random", seed=seed, reverse_blocks=seed % 2 == 1):
                found.add(step())
    assert len(found) == 1


def test_a_different_step_has_another_pattern():
    step = one_step("cpu")
    first = step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gg.random, "seed", lambda _: None)  # dropout goes on counting
        assert step() != first


def test_no_op_is_nondeterministic():
    assert gg.nondeterministic_ops() == []


def test_a_kernel_that_adds_with_atomics_would_be_named(monkeypatch):
    text = kernel.Kernel.code
    monkeypatch.setattr(
        kernel.Kernel, "code", lambda k: text(k) + ("atomicAdd(x, 1.0f);" if k.name == "scatter_rows" else "")
    )
    assert gg.nondeterministic_ops() == ["scatter_rows"]
