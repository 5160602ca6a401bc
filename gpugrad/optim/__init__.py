"""Optimisers, learning-rate schedules, gradient clipping, parameter averages and loss scaling."""

from gpugrad.optim import schedules
from gpugrad.optim.algorithms import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Nadam, RMSprop
from gpugrad.optim.helpers import ExponentialMovingAverage, clip_grad_norm, clip_grad_value
from gpugrad.optim.optimizer import Group, Optimizer
from gpugrad.optim.scaler import GradScaler
from gpugrad.optim.schedules import ReduceOnPlateau, Schedule

__all__ = [
    "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ExponentialMovingAverage", "GradScaler", "Group",
    "Nadam", "Optimizer", "RMSprop", "ReduceOnPlateau", "Schedule", "clip_grad_norm", "clip_grad_value", "schedules",
]  # fmt: skip
