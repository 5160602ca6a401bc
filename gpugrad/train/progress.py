"""What the terminal shows: a live bar, or one plain line an epoch where the output is no terminal."""

from __future__ import annotations

import time
from typing import Any

from gpugrad.train.extras import require
from gpugrad.train.trainer import Callback, Trainer


def describe(record: dict[str, Any]) -> str:
    """Loss, accuracy on each set and speed of one log record."""
    names = [n for n in ("train", "valid", "test") if f"{n}_accuracy" in record]
    scores = [f"{n} {record[f'{n}_accuracy']:.1%}" for n in names]
    return "  ".join([f"loss {record['train_loss']:.4f}", *scores, f"{record['samples_per_s']:,.0f} samples/s"])


class PlainProgress(Callback):
    """One line an epoch."""

    def on_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Print the epoch's record."""
        print(f"epoch {record['epoch']:>3.0f}/{trainer.epochs}  {describe(record)}", flush=True)


class BarProgress(Callback):
    """A bar over all epochs with the current record and the time left; drawn ten times a second at most."""

    def __init__(self) -> None:
        rich = require("rich.progress")
        self.bar = rich.Progress(
            rich.TextColumn("epoch {task.fields[epoch]}"), rich.BarColumn(bar_width=24),
            rich.TextColumn("{task.fields[record]}"), rich.TimeRemainingColumn(),
        )  # fmt: skip
        self.drawn = 0.0
        self.scores: dict[str, Any] = {}

    def on_begin(self, trainer: Trainer) -> None:
        """Show the bar, where a resumed run already stands."""
        self.task = self.bar.add_task("", total=trainer.steps, completed=trainer.step, epoch=trainer.epoch, record="")
        self.bar.start()

    def on_step(self, trainer: Trainer) -> None:
        """Move the bar, unless it moved a moment ago."""
        now = time.perf_counter()
        if now - self.drawn > 0.1:
            self.drawn = now
            epoch = f"{min(trainer.epoch + 1, trainer.epochs)}/{trainer.epochs}"
            self.bar.update(self.task, completed=trainer.step, epoch=epoch)

    def on_log(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Show the latest numbers beside the last scores."""
        self.bar.update(self.task, record=describe(self.scores | record))

    def on_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Show the epoch's numbers, the test set's among them."""
        self.scores = {k: record[k] for k in ("valid_accuracy", "test_accuracy") if k in record}
        epoch = f"{trainer.epoch}/{trainer.epochs}"
        self.bar.update(self.task, completed=trainer.step, epoch=epoch, record=describe(record))

    def on_close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.stop()


def progress() -> Callback:
    """The live bar on a terminal, plain lines elsewhere."""
    return BarProgress() if require("rich.console").Console().is_terminal else PlainProgress()
