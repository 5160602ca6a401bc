"""Everything that only a GPU can show, in one command of less than eight minutes: `make gpu-check OUT=dir`.

    python bench/gpu_check.py --out DIR [--double]

Runs one after another, each within its own time: `gpugrad doctor`; training on the handwritten digits with the loss
curve of the CPU beside it; the tests marked `gpu`; how far every op is from the CPU's; every kernel against float64 on
real sizes, its bandwidth beside a copy and the host's microseconds a launch (bench/kernels.py); compute-sanitizer
(memcheck, racecheck, initcheck) over all kernels on small sizes, where it is installed. Needs no network. Writes
gpu-check.json and gpu-check.md. --double takes the CPU double in place of a GPU, to try the command itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 470  # seconds in all
TOOLS = ("memcheck", "racecheck", "initcheck")


class Check:
    """One run of all parts; `deadline` cuts off what would take longer."""

    def __init__(self, out: Path, double: bool) -> None:
        self.out, self.double, self.deadline = out, double, time.monotonic() + LIMIT
        self.parts: dict[str, dict[str, Any]] = {}
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}

    def run(self, command: list[str], seconds: float) -> tuple[int, str]:
        """Exit code and output of a command; 124 where it was cut off, with what it had said."""
        left = min(seconds, self.deadline - time.monotonic())
        if left < 2:
            return 124, "no time left"
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=self.environment, timeout=left, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as cut:
            said = cut.stdout or b""
            return 124, (said.decode() if isinstance(said, bytes) else said) + f"\ncut off after {left:.0f} s"
        return done.returncode, done.stdout

    def part(self, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Run one part and write down what is known so far."""
        print(f"== {name}", flush=True)
        start = time.monotonic()
        try:
            result = run()
        except Exception as error:  # the other parts still run
            result = {"ok": False, "summary": f"{type(error).__name__}: {error}"}
        result["seconds"] = round(time.monotonic() - start, 1)
        self.parts[name] = result
        print(f"   {'ok' if result['ok'] else 'FAILED'}: {result['summary']} ({result['seconds']} s)", flush=True)
        self.write()

    def write(self) -> None:
        """gpu-check.json and gpu-check.md."""
        self.out.mkdir(parents=True, exist_ok=True)
        card = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "commit": commit()}
        (self.out / "gpu-check.json").write_text(json.dumps({**card, "parts": self.parts}, indent=1))
        lines = ["# GPU check", "", f"{card['date']}, commit {card['commit']}, Python {card['python']}", ""]
        lines += ["| part | | | s |", "|---|---|---|---|"]
        for name, p in self.parts.items():
            summary = p["summary"].replace("|", "/").replace("\n", " ")
            lines.append(f"| {name} | {'ok' if p['ok'] else '**failed**'} | {summary} | {p['seconds']} |")
        kernels = self.out / "kernels.md"
        if kernels.exists():
            lines += ["", "## Kernels", "", kernels.read_text()]
        (self.out / "gpu-check.md").write_text("\n".join(lines) + "\n")

    # --- the parts ------------------------------------------------------------------------------------------------

    def doctor(self) -> dict[str, Any]:
        """What works here."""
        if self.double:
            return {"ok": True, "summary": "left out on the double"}
        code, text = self.run([sys.executable, "-m", "gpugrad", "doctor", "--json"], 60)
        found = json.loads(text[text.index("{") :])
        return {"ok": code == 0 and found["gpu"]["state"] == "ok", "summary": found["gpu"]["seen"], "findings": found}

    def tests(self) -> dict[str, Any]:
        """The tests that need a GPU."""
        workers = ["-n", str(min(8, os.cpu_count() or 1))] if installed("xdist") else []
        chosen = ["tests/cuda/test_tensors.py"] if self.double else []
        code, text = self.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *workers, *chosen], 170
        )
        last = [line for line in text.splitlines() if re.search(r"\d+ (passed|skipped|failed)", line)]
        failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", text, re.M)
        passed = re.search(r"(\d+) passed", last[-1] if last else "")
        (self.out / "tests.log").write_text(text)
        ok = code == 0 and (passed is not None or self.double)
        return {"ok": ok, "summary": last[-1] if last else text[-300:], "failed": failed}

    def training(self) -> dict[str, Any]:
        """Loss curves of both devices."""
        where = "double" if self.double else "cuda"
        command = [
            sys.executable,
            str(ROOT / "bench" / "curves.py"),
            "--device",
            where,
            "--out",
            str(self.out / "curves.json"),
        ]
        code, text = self.run(command, 90)
        return {"ok": code == 0, "summary": text.strip().splitlines()[-1] if text.strip() else "nothing said"}

    def agreement(self) -> dict[str, Any]:
        """How far every op is from the CPU's."""
        command = [sys.executable, str(ROOT / "bench" / "agreement.py"), "--out", str(self.out / "agreement.md")]
        code, text = self.run([*command, *(["--double"] if self.double else [])], 60)
        return {"ok": code == 0, "summary": text.strip().splitlines()[-1] if text.strip() else "nothing said"}

    def kernels(self) -> dict[str, Any]:
        """Errors, bandwidths, host costs."""
        command = [sys.executable, str(ROOT / "bench" / "kernels.py"), "--out", str(self.out / "kernels.json")]
        code, text = self.run([*command, *(["--double", "--only", "relu"] if self.double else [])], 200)
        (self.out / "kernels.log").write_text(text)
        return {"ok": code == 0, "summary": text.strip().splitlines()[-1] if text.strip() else "nothing said"}

    def sanitizer(self, tool: str) -> dict[str, Any]:
        """compute-sanitizer over all kernels, on small sizes."""
        found = shutil.which("compute-sanitizer")
        if found is None or self.double:
            return {
                "ok": True,
                "summary": "compute-sanitizer is not installed" if found is None else "left out on the double",
            }
        script = [sys.executable, str(ROOT / "bench" / "kernels.py"), "--small", "--dtypes", "float32"]
        code, text = self.run([found, "--tool", tool, "--error-exitcode", "99", *script], 75)
        (self.out / f"{tool}.log").write_text(text)
        reports = re.findall(r"^=+ (ERROR SUMMARY.*|RACECHECK SUMMARY.*)$", text, re.M)
        return {"ok": code == 0, "summary": reports[-1] if reports else text.strip().splitlines()[-1][-200:]}


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    import importlib.util

    return importlib.util.find_spec(module) is not None


def commit() -> str | None:
    """The commit of this checkout."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def main() -> int:
    """Run all parts; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--double", action="store_true")
    options = parser.parse_args()
    check = Check(options.out, options.double)
    check.part("doctor", check.doctor)
    check.part("training", check.training)
    check.part("tests", check.tests)
    check.part("agreement", check.agreement)
    check.part("kernels", check.kernels)
    for tool in TOOLS:
        check.part(tool, lambda tool=tool: check.sanitizer(tool))
    return int(not all(p["ok"] for p in check.parts.values()))


if __name__ == "__main__":
    sys.exit(main())
