"""What a run is asked to do: the configuration, its checks, and the choice of the device."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import math
import re
import sys
from typing import Any

import gpugrad as gg
from gpugrad.errors import DeviceError, DomainError

MODELS = ("mlp", "lenet")
SCHEDULES = ("constant", "cosine", "linear", "step")
DTYPES = ("float32", "float64")
RATES = {
    "sgd": 0.05, "adagrad": 0.02, "adadelta": 1.0, "rmsprop": 1e-3,
    "adam": 3e-3, "adamw": 3e-3, "adamax": 6e-3, "nadam": 3e-3,
}  # fmt: skip  # learning rates that train the built-in networks well
MOMENTUM = ("sgd", "rmsprop")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run's bits; a field left None takes the default that `complete` fills in.

    data: a folder of IDX files, None for scikit-learn's digits. hidden: widths of the MLP's layers. early_stop:
    patience in epochs on a tenth of the training data, held out. log_every: steps between two log lines. replay:
    whether the step is run by `gg.replay`; it alone changes no bit.
    """

    data: str | None = None
    model: str = "mlp"
    hidden: tuple[int, ...] | None = None
    optimizer: str = "adamw"
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str = "cosine"
    batch_size: int = 64
    epochs: int | None = None
    seed: int = 0
    dtype: str = "float32"
    early_stop: int | None = None
    log_every: int = 20
    replay: bool = True

    def complete(self) -> Config:
        """The same configuration with every default written out. Raises DomainError for impossible values."""
        small = self.data is None
        filled: dict[str, Any] = {
            "hidden": ((512,) if self.model == "mlp" else None),
            "lr": RATES.get(self.optimizer),
            "momentum": 0.9 if self.optimizer == "sgd" else 0.0 if self.optimizer in MOMENTUM else None,
            "weight_decay": 0.01 if self.optimizer == "adamw" else 0.0,
            "epochs": 30 if small else 10,
        }
        done = dataclasses.replace(self, **{k: v for k, v in filled.items() if getattr(self, k) is None})
        done.check()
        return done

    def check(self) -> None:
        """Raises DomainError, naming the flag, for a value that no run could use."""
        demand("--model", self.model, self.model in MODELS, f"one of {', '.join(MODELS)}")
        demand("--optimizer", self.optimizer, self.optimizer in RATES, f"one of {', '.join(RATES)}")
        demand("--schedule", self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        demand("--dtype", self.dtype, self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        demand("--lr", self.lr, self.lr != 0 and nonnegative(self.lr), "a positive number")
        demand("--batch-size", self.batch_size, self.batch_size >= 1, "at least 1")
        demand("--epochs", self.epochs, (self.epochs or 0) >= 1, "at least 1")
        demand("--seed", self.seed, 0 <= self.seed < 2**63, "an integer from 0 to 2**63 - 1")
        demand("--weight-decay", self.weight_decay, nonnegative(self.weight_decay), "a number of at least 0")
        demand("--log-every", self.log_every, self.log_every >= 1, "at least 1")
        demand("--early-stop", self.early_stop, self.early_stop is None or self.early_stop >= 1, "at least 1")
        if self.momentum is not None:
            demand("--momentum", self.momentum, 0 <= self.momentum < 1, "from 0 to below 1")
            demand("--momentum", self.momentum, self.optimizer in MOMENTUM, f"with --optimizer {'|'.join(MOMENTUM)}")
        if self.hidden is not None:
            demand("--hidden", self.hidden, all(n >= 1 for n in self.hidden), "positive widths such as 128,64")
            demand("--hidden", self.hidden, self.model == "mlp", "with --model mlp")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self) | {"hidden": None if self.hidden is None else list(self.hidden)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Config:
        """The configuration that `to_json` wrote; unknown fields are an error of the file, TypeError."""
        hidden = fields.get("hidden")
        return cls(**{**fields, "hidden": None if hidden is None else tuple(hidden)})


def nonnegative(x: float | None) -> bool:
    """Whether x is a finite number of at least 0."""
    return x is not None and math.isfinite(x) and x >= 0


def demand(flag: str, value: Any, holds: bool, expected: str) -> None:
    """Raise DomainError unless the value is as expected."""
    if not holds:
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        raise DomainError(f"{flag} {shown}: expected {expected}")


def choose_device(asked: str = "auto") -> tuple[str, str]:
    """(device, why) for 'auto', 'cpu', 'cuda' or 'cuda:N'; auto takes the GPU when there is one that works.

    Raises DeviceError when a device asked for by name is unknown or cannot be used.
    """
    if asked == "cpu":
        return "cpu", "as asked"
    if asked != "auto" and not re.fullmatch(r"cuda(:\d+)?", asked):
        raise DeviceError(f"--device {asked}: expected auto, cpu, cuda or cuda:N")
    device = "cuda:0" if asked in ("auto", "cuda") else asked
    problem = why_unusable(device)
    if problem is None:
        return device, "as asked" if asked != "auto" else "a working NVIDIA GPU was found"
    if asked == "auto":
        return "cpu", problem
    raise DeviceError(f"--device {asked}: {problem}")


def why_unusable(device: str) -> str | None:
    """Why a GPU cannot be used here, or None when it can."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver found"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'gpugrad[cuda12]')"
    try:
        gg.tensor([0.0], device=device)
    except DeviceError as error:
        return str(error).splitlines()[0]
    return None
