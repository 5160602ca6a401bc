"""Trainer: the training loop with callbacks, and `evaluate`. The loop does what a plain loop does, bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gpugrad as gg
from gpugrad import nn
from gpugrad.errors import GraphError, fail
from gpugrad.train.metrics import Meters


class Callback:
    """What may happen at the stations of a run; override what you need.

    Every hook gets the trainer: its `step`, `epoch`, `epochs`, `steps`, `model`, `optimizer`, and `stop(reason)`.
    """

    def on_begin(self, trainer: Trainer) -> None:
        """Before the first step of a `fit`."""

    def on_step(self, trainer: Trainer) -> None:
        """After each step; reading a tensor here waits for the device."""

    def on_log(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """After the meters were read, every `log_every` steps and at the end of an epoch."""

    def on_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """After an epoch and its evaluations."""

    def on_finish(self, trainer: Trainer) -> None:
        """After the last step of a `fit` that ended by itself or by `stop`."""

    def on_close(self) -> None:
        """Always, at the very end, after an error too."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


class Trainer:
    """Trains a classifier: `Trainer(model, optimizer).fit(loader, epochs, test=(x, y))`.

    loss: of (logits, labels), a mean over the batch. schedule: has `step()`, called after every update. callbacks:
    called in order. log_every: steps between two log records; the host waits for the device only there, once.
    replay: run `update` by `gg.replay`, with the same bits; one that cannot be replayed goes on eagerly, after a
    warning. What the model or the loss print then appears at the first steps only.
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, *, loss: Callable[..., gg.Tensor] = nn.functional.cross_entropy,
        schedule: Any = None, callbacks: Sequence[Callback] = (), log_every: int = 20, replay: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.loss, self.schedule = model, optimizer, loss, schedule
        self.callbacks, self.log_every = list(callbacks), log_every
        self.records: list[dict[str, Any]] = []
        self._step = self.epoch = self.epochs = self.steps = 0
        self.seconds = 0.0
        self.stopped: str | None = None
        self.loader: Any = None
        self._update = gg.replay(self.update, strict=False) if replay else self.update
        self._meters = Meters()
        self._count, self._totals = 0, {"count": 0, "loss": 0.0, "correct": 0.0}

    @property
    def step(self) -> int:
        """Updates done; no attribute, or a replay would take the `step` of `optimizer.step` for it."""
        return self._step

    def fit(
        self, loader: Any, epochs: int, *, test: tuple[gg.Tensor, gg.Tensor] | None = None,
        valid: tuple[gg.Tensor, gg.Tensor] | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Train until `epochs` passes are done in all, or a callback stops it; returns the log records.

        loader: yields (inputs, labels) and has a length. test, valid: (inputs, labels) evaluated after each epoch.
        After `load_state_dict` it goes on where that state was, in the middle of an epoch if need be.
        """
        self.loader, self.epochs, self.steps, self.stopped = loader, epochs, epochs * len(loader), None
        try:
            self._tell("on_begin", self)
            self._clock = self._epoch_clock = time.perf_counter()
            while self.epoch < epochs and self.stopped is None:
                self._train_epoch()
                if self.step == (self.epoch + 1) * len(loader):  # not stopped on the way
                    self._end_epoch({"valid": valid, "test": test})
            self._tell("on_finish", self)
        finally:
            self._tell("on_close")
        return self.records

    def stop(self, reason: str) -> None:
        """End `fit` after the current step."""
        self.stopped = reason

    def update(self, x: gg.Tensor, y: gg.Tensor) -> tuple[gg.Tensor, gg.Tensor]:
        """What a step computes: gradients and new parameters. Returns the loss summed over the batch, and the hits.

        Override it to clip, to scale the loss or to add up the gradients of several parts of a batch.
        """
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = self.loss(logits, y)
        loss.backward()
        self.optimizer.step()
        return self.scores(loss, logits, y)

    def scores(self, loss: gg.Tensor, logits: gg.Tensor, y: gg.Tensor) -> tuple[gg.Tensor, gg.Tensor]:
        """What `update` returns, of a mean loss and the logits."""
        with gg.no_grad():
            return loss * len(y), correct(logits, y)

    def train_step(self, x: gg.Tensor, y: gg.Tensor) -> None:
        """One update on one batch; metrics are added up on the device."""
        loss, hits = self._update(x, y)
        if self.step == 0:
            check_connected(self.model)
        if self.schedule is not None:
            self.schedule.step()
        self._step, self._count = self.step + 1, self._count + len(y)
        self._meters.add(loss=loss, correct=hits)

    def _train_epoch(self) -> None:
        self.model.train()
        for x, y in self.loader:
            rate = self.optimizer.lr
            self.train_step(x, y)
            if self.step % self.log_every == 0 or self.step == (self.epoch + 1) * len(self.loader):
                self._log(rate)
            self._tell("on_step", self)
            if self.stopped is not None:
                break

    def _log(self, rate: float) -> None:
        """Read the meters: the one place where training waits for the device."""
        self._meters.add(grad_norm=gradient_norm(self.optimizer))
        sums, count = self._meters.read(), self._count
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        self.seconds += elapsed
        for name, value in {"count": count, "loss": sums["loss"], "correct": sums["correct"]}.items():
            self._totals[name] += value
        self._count = 0
        record = {
            "event": "interval", "step": self.step, "epoch": self.step / len(self.loader),
            "train_loss": sums["loss"] / count, "train_accuracy": sums["correct"] / count,
            "lr": rate, "grad_norm": sums["grad_norm"], "samples_per_s": count / elapsed, "seconds": self.seconds,
        }  # fmt: skip
        self.records.append(record)
        self._tell("on_log", self, record)

    def _end_epoch(self, sets: dict[str, tuple[gg.Tensor, gg.Tensor] | None]) -> None:
        trained = time.perf_counter() - self._epoch_clock
        count, loss, hits = self._totals["count"], self._totals["loss"], self._totals["correct"]
        scores = {name: evaluate(self.model, *data, loss=self.loss) for name, data in sets.items() if data is not None}
        self.epoch += 1
        self._totals = dict.fromkeys(self._totals, 0)
        now = time.perf_counter()
        self.seconds, self._clock, self._epoch_clock = self.seconds + now - self._clock, now, now
        record = {
            "event": "epoch", "step": self.step, "epoch": self.epoch,
            "train_loss": loss / count, "train_accuracy": hits / count,
            **{f"{name}_{key}": getattr(s, key) for name, s in scores.items() for key in ("loss", "accuracy")},
            "lr": self.optimizer.lr, "samples_per_s": count / trained, "seconds": self.seconds,
        }  # fmt: skip
        self.records.append(record)
        self._tell("on_epoch", self, record)

    def _tell(self, event: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*args)

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-equal continuation needs; it may be taken after any step."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "loader": self.loader.state_dict(),
            "random": gg.random.default.state_dict(),
            "metrics": {"count": self._count, "sums": self._meters.state_dict(), "totals": self._totals},
            "callbacks": {type(c).__name__: state for c in self.callbacks if (state := c.state_dict())},
        }

    def load_state_dict(self, saved: dict[str, Any], loader: Any) -> None:
        """Restore what `state_dict` gave into model, optimizer, schedule, loader, callbacks and random generator."""
        self.loader = loader
        self._step, self.epoch = saved["step"], saved["epoch"]
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["schedule"])
        loader.load_state_dict(saved["loader"])
        gg.random.default.load_state_dict(saved["random"])
        self._count, self._totals = saved["metrics"]["count"], saved["metrics"]["totals"]
        self._meters.load_state_dict(saved["metrics"]["sums"], next(iter(self.model.parameters())).device)
        for callback in self.callbacks:
            if type(callback).__name__ in saved["callbacks"]:
                callback.load_state_dict(saved["callbacks"][type(callback).__name__])


class EarlyStopping(Callback):
    """Stops after `patience` epochs without a smaller `monitor`, a key of the epoch record."""

    def __init__(self, patience: int, monitor: str = "valid_loss") -> None:
        self.patience, self.monitor = patience, monitor
        self.best: float | None = None
        self.waited = 0

    def on_begin(self, trainer: Trainer) -> None:
        """A resumed run that has already stopped stays stopped."""
        self._judge(trainer)

    def on_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Compare with the best epoch so far. A value that is not a number counts as no improvement."""
        value = record[self.monitor]
        if not math.isnan(value) and (self.best is None or value < self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        self._judge(trainer)

    def _judge(self, trainer: Trainer) -> None:
        if self.waited >= self.patience:
            trainer.stop(f"no better {self.monitor} for {self.patience} epochs")

    @property
    def improved(self) -> bool:
        """Whether the last epoch was the best so far."""
        return self.best is not None and self.waited == 0

    def state_dict(self) -> dict[str, Any]:
        """Best value and epochs since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.best, self.waited = saved["best"], saved["waited"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a data set: mean loss, share of hits, and per sample the class and its probability."""

    loss: float
    accuracy: float
    predicted: Any
    confidence: Any


def evaluate(
    model: nn.Module, x: gg.Tensor, y: gg.Tensor, *, batch_size: int = 1000,
    loss: Callable[..., gg.Tensor] = nn.functional.cross_entropy,
) -> Evaluation:  # fmt: skip
    """Score a classifier in evaluation mode without recording; the mode of every layer is restored afterwards.

    x: inputs (N, ...), y: class numbers (N,), on the model's device. Nothing is read from the device before the end.
    """
    meters, predicted, confidence = Meters(), [], []
    with model.evaluating(), gg.no_grad():
        for start in range(0, len(y), batch_size):
            labels = y[start : start + batch_size]
            logits = model(x[start : start + batch_size])
            meters.add(loss=loss(logits, labels) * len(labels), correct=correct(logits, labels))
            predicted.append(gg.argmax(logits, axis=-1))
            confidence.append(gg.max(gg.softmax(logits, axis=-1), axis=-1))
        sums, n = meters.read(), len(y)
        return Evaluation(
            sums["loss"] / n, sums["correct"] / n, gg.concat(predicted).numpy(), gg.concat(confidence).numpy()
        )


def check_connected(model: nn.Module) -> None:
    """Raise GraphError naming the parameters that require gradients and got none from the first loss."""
    cut = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if cut:
        raise fail(
            GraphError, "Trainer", f"the loss does not depend on {', '.join(cut)}; use or freeze what is trained"
        )


def correct(logits: gg.Tensor, labels: gg.Tensor) -> gg.Tensor:
    """How many rows have their largest logit at the label, 0-d."""
    return gg.sum(gg.argmax(logits, axis=-1) == labels)  # type: ignore[no-any-return]


def gradient_norm(optimizer: Any) -> gg.Tensor:
    """The Euclidean norm of all gradients together, 0-d on the device."""
    with gg.no_grad():
        squares = [gg.sum(p.grad * p.grad) for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        return gg.sqrt(gg.sum(gg.stack(squares)))  # type: ignore[no-any-return]
