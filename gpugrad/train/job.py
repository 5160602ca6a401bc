"""The jobs behind the command line: start a run, go on with one, evaluate one."""

from __future__ import annotations

import contextlib
import json
import math
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad import data, nn, optim
from gpugrad.errors import DomainError
from gpugrad.train import report
from gpugrad.train.checkpoint import CheckpointError, load_state, save_state, write_atomically
from gpugrad.train.config import Config, choose_device
from gpugrad.train.environment import environment, one_blas_thread
from gpugrad.train.extras import check_installed
from gpugrad.train.metrics import cut_log
from gpugrad.train.models import lenet, mlp
from gpugrad.train.progress import progress
from gpugrad.train.trainer import Callback, EarlyStopping, Evaluation, Trainer, evaluate

INTERRUPTED = "interrupted"
EXIT_INTERRUPTED = 130
FILES = "config.json environment.json metrics.jsonl result.json last.safetensors"
PICTURES = ("learning-curves", "confusion-matrix", "sample-predictions")
OPTIMIZERS: dict[str, Any] = {
    "sgd": optim.SGD, "adagrad": optim.Adagrad, "adadelta": optim.Adadelta, "rmsprop": optim.RMSprop,
    "adam": optim.Adam, "adamw": optim.AdamW, "adamax": optim.Adamax, "nadam": optim.Nadam,
}  # fmt: skip


# --- building ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sets:
    """Images (N, C, H, W) uint8 from 0 to `peak` and class numbers (N,) int64, on the host."""

    name: str
    train: tuple[Any, Any]
    test: tuple[Any, Any]
    peak: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return tuple(self.train[0].shape[1:])

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return int(max(self.train[1].max(), self.test[1].max())) + 1

    def place(self, images: Any, labels: Any, config: Config, device: str) -> tuple[gg.Tensor, gg.Tensor]:
        """Images scaled to [0, 1] in the configured dtype, and labels, on a device."""
        x, y = (gg.asarray(a).to(device=device) for a in (images, labels))
        return x.to(dtype=config.dtype) / self.peak, y


def load_sets(folder: str | None) -> Sets:
    """The digits of scikit-learn, or the IDX files in a folder. Raises DataError where they cannot be used."""
    if folder is None:
        name, peak, arrays = "the handwritten digits of scikit-learn", 16, data.digits()
    elif Path(folder).is_dir():
        name, peak, arrays = folder, 255, data.mnist(folder)
    else:
        raise data.DataError(f"--data {folder}: no such folder")
    x, y, test_x, test_y = arrays
    if not len(y) or not len(test_y):
        raise data.DataError(f"{name}: {len(y)} training and {len(test_y)} test images, expected at least one of each")
    return Sets(name, (x[:, None], y.astype(np.int64)), (test_x[:, None], test_y.astype(np.int64)), peak)


def build_model(config: Config, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The configured network in the configured dtype, initialised by the default generator."""
    model = mlp(shape, classes, config.hidden or ()) if config.model == "mlp" else lenet(shape, classes)
    return model.to(dtype=config.dtype)


def build_optimizer(config: Config, model: nn.Module) -> Any:
    """The configured optimiser over the model's parameters."""
    options = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.momentum is not None:
        options["momentum"] = config.momentum
    return OPTIMIZERS[config.optimizer](model.named_parameters(), **options)


def build_schedule(config: Config, optimizer: Any, steps: int) -> optim.Schedule:
    """The configured learning-rate schedule over that many steps."""
    shapes: dict[str, Any] = {
        "constant": optim.schedules.Constant(),
        "cosine": optim.schedules.Cosine(steps),
        "linear": optim.schedules.Polynomial(steps),
        "step": optim.schedules.Step(max(1, math.ceil(steps / 3))),
    }
    return optim.Schedule(optimizer, shapes[config.schedule])


class Session:
    """Data, model, optimiser and trainer of one configuration on one device."""

    def __init__(self, config: Config, device: str, quiet: bool) -> None:
        self.config, self.device = config, device
        self.sets = load_sets(config.data)
        gg.random.seed(config.seed)
        self.model = build_model(config, self.sets.shape, self.sets.classes).to(device=device)
        self.optimizer = build_optimizer(config, self.model)
        train, self.valid = self.split()
        self.test = self.sets.place(*self.sets.test, config, device)
        self.loader = data.ArrayLoader(*train, batch_size=config.batch_size, shuffle=True, seed=config.seed)
        self.early = None if config.early_stop is None else EarlyStopping(config.early_stop)
        self.trainer = Trainer(
            self.model, self.optimizer, log_every=config.log_every, replay=config.replay,
            schedule=build_schedule(config, self.optimizer, (config.epochs or 0) * len(self.loader)),
            callbacks=[c for c in (self.early, None if quiet else progress()) if c is not None],
        )  # fmt: skip

    def split(self) -> tuple[Any, Any]:
        """(training set, validation set): a tenth is held out for early stopping, else there is no validation."""
        x, y = self.sets.train
        if self.config.early_stop is None:
            return self.sets.place(x, y, self.config, self.device), None
        kept, held = data.stratified_split(y, 0.1, self.config.seed)
        if not len(held):
            raise data.DataError(f"--early-stop: {len(y)} training images are too few to hold out a tenth")
        train, valid = (self.sets.place(x[i], y[i], self.config, self.device) for i in (kept, held))
        return train, valid

    def state(self) -> dict[str, Any]:
        """The checkpoint's content."""
        return {
            "config": self.config.to_json(),
            "shape": list(self.sets.shape),
            "classes": self.sets.classes,
            "trainer": self.trainer.state_dict(),
        }

    def describe(self, reason: str) -> str:
        """What is about to happen, for the terminal."""
        c, (channels, height, width) = self.config, self.sets.shape
        widths = (math.prod(self.sets.shape), *(c.hidden or ()), self.sets.classes)
        name = f"mlp {'-'.join(map(str, widths))}" if c.model == "mlp" else c.model
        size = f"{height}x{width}" + (f"x{channels}" if channels > 1 else "")
        return "\n".join([
            f"device  {self.device}: {reason}",
            f"data    {self.sets.name}: {len(self.sets.train[1]):,} training and {len(self.sets.test[1]):,} test "
            f"images of {size}, {self.sets.classes} classes",
            f"model   {name}, {self.model.num_parameters():,} parameters, {c.dtype}",
            f"plan    {c.optimizer}, learning rate {c.lr:g} ({c.schedule}), batches of {c.batch_size}, "
            f"{c.epochs} epochs, seed {c.seed}",
        ])  # fmt: skip


# --- the run folder ---------------------------------------------------------------------------------------


class RunFolder(Callback):
    """Keeps a run's folder: log lines as they come, the checkpoint after every epoch and at the end."""

    def __init__(self, path: Path, session: Session) -> None:
        self.path, self.session = path, session

    def on_begin(self, trainer: Trainer) -> None:
        """Open the log."""
        self.log = open(self.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115

    def on_log(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Write the record as one line, at once."""
        self.log.write(json.dumps(strict(record), allow_nan=False) + "\n")
        self.log.flush()

    def on_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Write the record and the checkpoint; with early stopping the best model too."""
        self.on_log(trainer, record)
        if self.session.early is not None and self.session.early.improved:
            self.save("best")
        self.save("last")

    def on_finish(self, trainer: Trainer) -> None:
        """Keep the steps since the last epoch of a run that is stopped on the way."""
        if trainer.step != trainer.epoch * len(trainer.loader):
            self.save("last")

    def on_close(self) -> None:
        """Close the log."""
        self.log.close()

    def save(self, name: str) -> None:
        """Write a checkpoint, whole or not at all."""
        save_state(self.path / f"{name}.safetensors", self.session.state())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(strict(value), indent=2, allow_nan=False) + "\n").encode())


def strict(values: dict[str, Any]) -> dict[str, Any]:
    """The values with null for numbers that JSON does not have: nan and infinities of a run that diverged."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def new_folder(out: str | None) -> Path:
    """Make the run's folder: the one asked for, which must be new or empty, or the next number under runs/."""
    if out is not None:
        path = Path(out)
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise DomainError(f"--out {out}: the folder is not empty; choose another, or --resume {out}")
        return path
    Path("runs").mkdir(exist_ok=True)
    number = max((int(p.name) for p in Path("runs").iterdir() if p.name.isdecimal()), default=0)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            path = Path("runs") / f"{number:03d}"
            path.mkdir()
            return path


class CtrlC(Callback):
    """Turns the first Ctrl-C inside the block into a stop after the current step; a second one interrupts at once."""

    pressed = False

    def __enter__(self) -> None:
        self.previous = signal.signal(signal.SIGINT, self.handle)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def handle(self, *_: object) -> None:
        """The signal handler."""
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def on_step(self, trainer: Trainer) -> None:
        """Stop if asked to."""
        if self.pressed:
            trainer.stop(INTERRUPTED)

    def on_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """Stop if asked to during the evaluation."""
        self.on_step(trainer)


# --- jobs -------------------------------------------------------------------------------------------------


@one_blas_thread
def start(config: Config, *, device: str = "auto", out: str | None = None, quiet: bool = False) -> int:
    """Train from scratch into a new run folder; returns the exit code.

    Raises a GpugradError or OSError, before anything is written, for a value, device or data set that cannot be used.
    """
    check_installed("rich", "safetensors", "matplotlib", "threadpoolctl")
    device, reason = choose_device(device)
    config = config.complete()
    if config.data is not None:
        config = replace(config, data=str(Path(config.data).resolve()))
    session = Session(config, device, quiet)
    card = environment(device)
    return train(session, new_folder(out), card, reason, quiet)


@one_blas_thread
def resume(
    folder: Path, *, epochs: int | None = None, data: str | None = None, replay: bool | None = None,
    device: str = "auto", quiet: bool = False,
) -> int:  # fmt: skip
    """Go on with a run where its checkpoint stands, with another number of epochs, data folder or `replay` if given.

    On the same device it ends in the same bits as a run that was never interrupted. Raises as `start` does, and
    CheckpointError where there is no usable checkpoint.
    """
    check_installed("rich", "safetensors", "matplotlib", "threadpoolctl")
    state, config = read_run(folder / "last.safetensors")
    device, reason = choose_device(device)
    changes: dict[str, Any] = {"epochs": epochs, "data": data and str(Path(data).resolve()), "replay": replay}
    config = replace(config, **{k: v for k, v in changes.items() if v is not None}).complete()
    session = Session(config, device, quiet)
    check_fit(state, session.sets)
    trainer = session.trainer
    trainer.load_state_dict(state["trainer"], session.loader)
    trainer.records = cut_log(folder / "metrics.jsonl", trainer.step)
    trainer.seconds = trainer.records[-1]["seconds"] if trainer.records else 0.0
    card = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    card.setdefault("resumed", []).append(environment(device))
    return train(session, folder, card, reason, quiet)


def train(session: Session, folder: Path, card: dict[str, Any], reason: str, quiet: bool) -> int:
    """Run the trainer inside its folder and write the report; returns the exit code. card: of the environment."""
    trainer, ctrl_c = session.trainer, CtrlC()
    keeper = RunFolder(folder, session)
    trainer.callbacks += [keeper, ctrl_c]
    trainer.loader = session.loader
    with ctrl_c:
        write_json(folder / "config.json", session.config.to_json())
        write_json(folder / "environment.json", card)
        keeper.save("last")
        if not quiet:
            print(f"{session.describe(reason)}\nrun     {folder}", flush=True)
        trainer.fit(session.loader, session.config.epochs or 0, valid=session.valid, test=session.test)
    if trainer.stopped == INTERRUPTED:
        print(f"interrupted at step {trainer.step} of {trainer.steps}; go on with: gpugrad train --resume {folder}")
        return EXIT_INTERRUPTED
    finish(session, folder, quiet)
    return 0


def finish(session: Session, folder: Path, quiet: bool) -> None:
    """Score the run's model (the best one under early stopping) and write the result and the pictures."""
    trainer, name = session.trainer, "last"
    if (folder / "best.safetensors").exists():
        name = "best"
        session.model.load_state_dict(load_state(folder / "best.safetensors")["trainer"]["model"])
    scores = evaluate(session.model, *session.test)
    images, labels = session.sets.test
    write_json(folder / "result.json", {
        "checkpoint": f"{name}.safetensors", "test_loss": scores.loss, "test_accuracy": scores.accuracy,
        "epochs": trainer.epoch, "steps": trainer.step, "seconds": trainer.seconds, "stopped": trainer.stopped,
    })  # fmt: skip
    report.learning_curves(trainer.records, folder / PICTURES[0])
    title = f"test accuracy {scores.accuracy:.2%}"
    report.confusion_matrix(confusion(labels, scores.predicted, session.sets.classes), folder / PICTURES[1], title)
    report.sample_predictions(images, labels, scores.predicted, scores.confidence, folder / PICTURES[2])
    print(
        f"result  test accuracy {scores.accuracy:.2%}, loss {scores.loss:.4f} after {trainer.epoch} epochs, "
        f"{trainer.seconds:.1f} s" + (f" ({trainer.stopped})" if trainer.stopped else "")
    )
    if not quiet:
        best = " best.safetensors" if name == "best" else ""
        print(f"files   {folder}: {FILES}{best} {' '.join(f'{p}.png' for p in PICTURES)} (and .svg)")
        print(f"next    gpugrad eval {folder}")


@one_blas_thread
def evaluate_run(path: Path, *, data: str | None = None, device: str = "auto", as_json: bool = False) -> Evaluation:
    """Load a run's checkpoint (its best one where early stopping kept one), score it on the test set, print the scores.

    path: the run's folder or a checkpoint file. Raises CheckpointError for a bad file, DomainError for data of
    another shape.
    """
    check_installed("safetensors")
    if path.is_dir():
        best = path / "best.safetensors"
        path = best if best.exists() else path / "last.safetensors"
    state, config = read_run(path)
    device, reason = choose_device(device)
    sets = load_sets(data or config.data)
    check_fit(state, sets)
    model = build_model(config, tuple(state["shape"]), state["classes"]).to(device=device)
    model.load_state_dict(state["trainer"]["model"])
    images, labels = sets.test
    scores = evaluate(model, *sets.place(images, labels, config, device))
    table = per_class(confusion(labels, scores.predicted, state["classes"]))
    if as_json:
        print(json.dumps(strict({
            "checkpoint": str(path), "step": state["trainer"]["step"], "device": device, "images": len(labels),
            "loss": scores.loss, "accuracy": scores.accuracy, "classes": table,
        })))  # fmt: skip
        return scores
    print(f"device  {device}: {reason}\nmodel   {path}, step {state['trainer']['step']}\ndata    {sets.name}\n")
    print("class  images  correct  precision   recall")
    for row in table:
        counts = f"{row['class']:>5}  {row['images']:>6}  {row['correct']:>7}"
        print(f"{counts}  {share(row['precision'])}  {share(row['recall'])}")
    print(f"\naccuracy {scores.accuracy:.2%}  loss {scores.loss:.4f}  ({len(labels):,} images)")
    return scores


# --- help -------------------------------------------------------------------------------------------------


def read_run(path: Path) -> tuple[dict[str, Any], Config]:
    """(state, configuration) of a checkpoint. Raises CheckpointError if it is not one of a run."""
    if not path.parent.is_dir() or not (path.suffix or path.exists()):
        raise CheckpointError(f"{path if path.parent.is_dir() else path.parent}: no such run folder")
    state = load_state(path)
    try:
        return state, Config.from_json(state["config"])
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: holds no training run") from None


def check_fit(state: dict[str, Any], sets: Sets) -> None:
    """Raise DomainError where images or classes differ from those that the run was trained on."""
    expected, got = (tuple(state["shape"]), state["classes"]), (sets.shape, sets.classes)
    if got[0] != expected[0] or got[1] > expected[1]:
        raise DomainError(
            f"{sets.name}: images of {'x'.join(map(str, got[0]))} in {got[1]} classes, "
            f"the run was trained on {'x'.join(map(str, expected[0]))} in {expected[1]}"
        )


def confusion(labels: Any, predicted: Any, classes: int) -> Any:
    """Counts of (true class, predicted class)."""
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes).reshape(classes, -1)


def per_class(counts: Any) -> list[dict[str, Any]]:
    """Images, hits, precision and recall of each class; None where there is nothing to divide by."""
    return [
        {
            "class": i, "images": int(row.sum()), "correct": int(row[i]),
            "precision": float(row[i] / guessed) if guessed else None,
            "recall": float(row[i] / row.sum()) if row.sum() else None,
        }
        for i, (row, guessed) in enumerate(zip(counts, counts.sum(axis=0)))
    ]  # fmt: skip


def share(value: float | None) -> str:
    """A share as the table prints it."""
    return f"{'-' if value is None else f'{value:.1%}':>9}"
