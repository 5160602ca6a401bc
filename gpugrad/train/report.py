"""A run's pictures, each as PNG and SVG: learning curves, confusion matrix, sample predictions."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpugrad.train.checkpoint import write_atomically
from gpugrad.train.extras import require

TRAIN, TEST, VALID, WRONG = "#1f6fb4", "#d1601b", "#3d8f4b", "#b3262e"
STYLE = {"svg.hashsalt": "gpugrad", "axes.spines.top": False, "axes.spines.right": False, "font.size": 10}


@contextlib.contextmanager
def picture(stem: Path, width: float, height: float) -> Iterator[Any]:
    """An empty figure of that size in inches, written as stem.png and stem.svg at the end of the block.

    Drawn by Agg without display or global pyplot state; the same figure gives the same bytes.
    """
    with require("matplotlib").rc_context(STYLE):
        fig = require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
        require("matplotlib.backends.backend_agg").FigureCanvasAgg(fig)
        yield fig
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, dpi=130, metadata=metadata)
            write_atomically(stem.with_suffix(f".{kind}"), buffer.getvalue())


def learning_curves(records: Sequence[dict[str, Any]], stem: Path) -> None:
    """Loss, accuracy, learning rate and gradient norm against the epoch, from the lines of metrics.jsonl."""
    with picture(stem, 10, 6.4) as fig:
        draw_curves(fig, records)


def draw_curves(fig: Any, records: Sequence[dict[str, Any]]) -> None:
    """The four panels of `learning_curves`."""
    (loss, accuracy), (rate, norm) = fig.subplots(2, 2, sharex=True)
    epochs = [r for r in records if r["event"] == "epoch"]
    steps = [r for r in records if r["event"] == "interval"]

    def curve(ax: Any, rows: Sequence[dict[str, Any]], key: str, colour: str, label: str, **style: Any) -> None:
        points = [(r["epoch"], r[key]) for r in rows if known(r.get(key))]
        if points:
            ax.plot(*zip(*points), color=colour, label=label, **style)

    curve(loss, steps, "train_loss", TRAIN, "train, between two log lines", alpha=0.35, linewidth=1)
    marker = {"marker": "o", "markersize": 3} if len(epochs) <= 40 else {}
    for name, colour in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        label = {"train": "train", "valid": "validation", "test": "test"}[name]
        curve(loss, epochs, f"{name}_loss", colour, label, **marker)
        curve(accuracy, epochs, f"{name}_accuracy", colour, label, **marker)
    curve(rate, steps, "lr", TRAIN, "learning rate")
    curve(norm, steps, "grad_norm", TRAIN, "gradient norm")
    if all(r["train_loss"] > 0 for r in records if known(r["train_loss"])):
        loss.set_yscale("log")
    if any(r["grad_norm"] > 0 for r in steps if known(r["grad_norm"])):
        norm.set_yscale("log")
    rate.set_ylim(bottom=0)
    scores = [r[k] for r in epochs for k in ("train_accuracy", "test_accuracy") if r.get(k) is not None]
    if scores:  # the interesting part is near 1
        low = max(0.0, min(sorted(scores)[len(scores) // 10], 0.95) - 0.02)
        accuracy.set_ylim(low, 1 + (1 - low) * 0.04)
    titles = ("loss", "accuracy", "learning rate", "gradient norm")
    for ax, title in zip((loss, accuracy, rate, norm), titles):
        ax.set_title(title, loc="left", fontweight="bold")
        ax.grid(alpha=0.25)
    for ax, place in ((loss, "upper right"), (accuracy, "lower right")):
        if ax.lines:
            ax.legend(frameon=False, loc=place)
    for ax in (rate, norm):
        ax.set_xlabel("epoch")


def known(value: Any) -> bool:
    """Whether a logged number is there and finite; a run that diverged has others."""
    return value is not None and math.isfinite(value)


def confusion_matrix(counts: Any, stem: Path, title: str) -> None:
    """Counts of (true class, predicted class), coloured by the share of the true class."""
    counts = np.asarray(counts)
    classes = len(counts)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with picture(stem, 1.6 + 0.55 * classes, 1.2 + 0.55 * classes) as fig:
        ax = fig.subplots()
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i in range(classes):
            for j in range(classes):
                if counts[i, j]:
                    colour = "white" if share[i, j] > 0.5 else "black" if i == j else WRONG
                    ax.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour)
        ax.set(xticks=range(classes), yticks=range(classes), xlabel="predicted class", ylabel="true class")
        ax.set_title(title, loc="left", fontweight="bold")
        ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
        fig.colorbar(image, ax=ax, shrink=0.8, label="share of the true class")


def sample_predictions(images: Any, labels: Any, predicted: Any, confidence: Any, stem: Path) -> None:
    """A grid of up to 32 test images: mistakes first (most confident first, at most half), then evenly spaced hits.

    images: (N, H, W) or (N, 1, H, W) or (N, C, H, W); labels and predicted: class numbers; confidence: the
    probability of the predicted class.
    """
    labels, predicted, confidence = (np.asarray(a) for a in (labels, predicted, confidence))
    wrong, right = np.flatnonzero(labels != predicted), np.flatnonzero(labels == predicted)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: max(16, 32 - len(right))]
    spaced = np.linspace(0, len(right) - 1, min(32 - len(wrong), len(right))).astype(int)
    chosen = np.concatenate([wrong, right[spaced]])
    rows = -(-len(chosen) // 8)
    with picture(stem, 10, 0.5 + 1.5 * rows) as fig:
        for ax in fig.subplots(rows, 8, squeeze=False).flat:
            ax.axis("off")
        for ax, i in zip(fig.axes, chosen):
            pixels = np.asarray(images[i], dtype=np.float64)
            pixels = pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels
            ax.imshow(np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels, cmap="gray_r")
            hit = labels[i] == predicted[i]
            answer = str(predicted[i]) if hit else f"{predicted[i]}, is {labels[i]}"
            ax.set_title(f"{answer}  ({confidence[i]:.0%})", fontsize=9, color="black" if hit else WRONG)
        count = int((labels != predicted).sum())
        fig.suptitle(
            f"predicted class (probability): {count} of {len(labels)} test images wrong"
            + ("; the surest mistakes first" if count else ""),
            fontsize=11, fontweight="bold", x=0.01, ha="left",
        )  # fmt: skip
