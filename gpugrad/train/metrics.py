"""Running metrics that stay on the device and hold no graph, and the log they end in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpugrad as gg
from gpugrad.train.checkpoint import write_atomically


class Meters:
    """Named running sums on the device. `add` never waits for it; `read` waits once for all of them."""

    def __init__(self) -> None:
        self.sums: dict[str, gg.Tensor] = {}

    def add(self, **values: gg.Tensor) -> None:
        """Add 0-d tensors; their history is not kept."""
        for name, value in values.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self) -> dict[str, float]:
        """The sums as Python floats, in one transfer; the meters start again from zero."""
        names, sums = list(self.sums), [s.to(gg.float64) for s in self.sums.values()]
        self.sums = {}
        return dict(zip(names, gg.stack(sums).tolist())) if sums else {}

    def state_dict(self) -> dict[str, Any]:
        """The running sums."""
        return dict(self.sums)

    def load_state_dict(self, saved: dict[str, gg.Tensor], device: str = "cpu") -> None:
        """Restore what `state_dict` gave, on a device."""
        self.sums = {name: value.to(device) for name, value in saved.items()}


def cut_log(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines written after `step` (a run that was killed logs further than its checkpoint); the rest."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines(keepends=True)  # a kill can leave half a line
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    write_atomically(path, "".join(kept).encode())
    return [json.loads(line) for line in kept]
