"""Peers that a benchmark must not be fooled by."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from gpugrad.bench.peers import Unable
from gpugrad.bench.peers.by_hand import OPTIMIZERS, ByHand


class Sound(ByHand):
    """Correct; writes down when it ran, and speaks where it should not."""

    def device_seconds(self, run):
        print("noise on stdout")
        os.write(1, b"more of it, without a line's end")
        start = time.monotonic()
        super().device_seconds(run)
        with Path(os.environ["BENCH_TEST_LOG"]).open("a") as log:
            log.write(json.dumps([os.getpid(), start, time.monotonic()]) + "\n")


class Doubled(ByHand):
    """The optimiser takes twice the rate."""

    def train(self, workload, parameters, batch):
        slopes = self.rule(workload)
        rates = {**dict(workload.rates), "lr": 2 * dict(workload.rates)["lr"]}
        update = OPTIMIZERS[workload.optimizer](parameters, **rates)

        def step():
            loss, *grads = slopes(parameters, batch)
            update(grads)
            return [loss]

        return step


class Wrong(ByHand):
    """Gradients are changed by `spoil`."""

    def spoil(self, grads):
        raise NotImplementedError

    def rule(self, workload):
        right = super().rule(workload)

        def wrong(p, batch):
            loss, *grads = right(p, batch)
            return [loss, *self.spoil(grads)]

        return wrong


class Uphill(Wrong):
    """The sign."""

    def spoil(self, grads):
        return [-g for g in grads]


class Forgetful(Wrong):
    """The first weights get no gradient: a common bug."""

    def spoil(self, grads):
        return [np.zeros_like(grads[0]), *grads[1:]]


class Imprecise(Wrong):
    """One percent too long."""

    def spoil(self, grads):
        return [g * np.asarray(1.01, g.dtype) for g in grads]


class Vanishing(Wrong):
    """Not a number."""

    def spoil(self, grads):
        return [g * np.nan for g in grads]


class Frozen(ByHand):
    """Never updates anything, and is fast."""

    def train(self, workload, parameters, batch):
        loss = self.rule(workload)(parameters, batch)[0]
        return lambda: [loss]


class Crashing(ByHand):
    """Ends the process."""

    def step(self, workload, parameters, batch):
        print("the last words", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)


class Raising(ByHand):
    """Raises while it is timed, after the gate."""

    def device_seconds(self, run):
        raise RuntimeError("out of luck\nand more")


class Unwilling(ByHand):
    """Cannot."""

    def step(self, workload, parameters, batch):
        raise Unable("it has no such thing")


class Slow(ByHand):
    """Compiles for ever."""

    def step(self, workload, parameters, batch):
        time.sleep(3600)


class Stale(ByHand):
    """Right three times, then a replay of what it knew: the trap of everything that is traced."""

    def step(self, workload, parameters, batch):
        step, done = super().step(workload, parameters, batch), []

        def run():
            if len(done) < 3:
                done.append([np.array(a) for a in step()])
                return done[-1]
            return done[-1] if workload.kind == "train" else [done[-1][0], *(0 * g for g in done[-1][1:])]

        return run


class Tired(ByHand):
    """Fails when everything has been timed."""

    def peak(self):
        raise MemoryError("too much")
