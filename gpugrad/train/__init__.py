"""Training: the loop with callbacks, evaluation, checkpoints, metrics, pictures, and the jobs of the command line."""

from gpugrad.train.checkpoint import CheckpointError, load_state, load_tensors, save_state, save_tensors
from gpugrad.train.environment import environment
from gpugrad.train.metrics import Meters
from gpugrad.train.models import lenet, mlp
from gpugrad.train.trainer import Callback, EarlyStopping, Evaluation, Trainer, evaluate

__all__ = [
    "Callback", "CheckpointError", "EarlyStopping", "Evaluation", "Meters", "Trainer", "environment", "evaluate",
    "lenet", "load_state", "load_tensors", "mlp", "save_state", "save_tensors",
]  # fmt: skip
