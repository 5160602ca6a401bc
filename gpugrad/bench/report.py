"""What a run leaves: bench-<device>.json, .md and a picture; and docs/performance.md, made of such JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpugrad.bench.targets import AT_LEAST, RATIO, judged
from gpugrad.errors import DomainError, fail

Result = dict[str, Any]
BASE = "torch"  # what ratios are taken of
STEPS = {"gpugrad": "an eager step of gpugrad", "gpugrad-replay": "a replayed step",
         "gpugrad-compiled": "a compiled replay"}  # fmt: skip
SHOWN = 0.02  # share of a step's time that is worth a word
WORDS = {"missing": "missing", "n/a": "n/a", "refused": "refused", "failed": "failed", "late": "out of time"}


def write(result: Result, folder: Path) -> list[Path]:
    """Everything into a folder; the paths. The picture needs matplotlib and is left out without it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"bench-{result['device'].partition(':')[0]}"
    result["targets"] = judged(result)
    files = [stem.with_suffix(".json"), stem.with_suffix(".md")]
    files[0].write_text(json.dumps(result, indent=1) + "\n")
    files[1].write_text(markdown(result))
    try:
        import matplotlib as _  # noqa: F401
    except ModuleNotFoundError:
        return files
    draw(result, stem)
    return [*files, stem.with_suffix(".svg")]


def read(path: Path) -> Result:
    """A run from its JSON. Raises DomainError for a file that is none."""
    try:
        result = json.loads(path.read_text())
        if result["schema"] == 1:
            return result  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError):
        pass
    raise fail(DomainError, "bench", f"{path} is no result of `gpugrad bench`")


# --- Markdown -----------------------------------------------------------------------------------------------------


def markdown(result: Result, level: int = 1) -> str:
    """The report of one run."""
    head = "#" * level
    parts = [
        f"{head} `gpugrad bench` on {where(result)}",
        conditions(result),
        f"{head}# Time a step",
        "Milliseconds; median of interleaved rounds, in brackets the ratio to torch eager (less is faster).",
        times(result),
        f"{head}# Spread, throughput, memory, start",
        details(result),
        *([computed(result)] if computed(result) else []),
        f"{head}# Targets",
        verdicts(result),
        f"{head}# Frameworks",
        packages(result),
    ]
    for column, step in STEPS.items():
        spent = profiles(result, column)
        if spent:
            parts += [f"{head}# Where {step} spends its time", spent]
    silent = reasons(result)
    if silent:
        parts += [f"{head}# What was not timed, and why", silent]
    return "\n\n".join(parts) + "\n"


def where(result: Result) -> str:
    """The machine in words."""
    if result.get("gpu"):
        return str(result["gpu"]["name"])
    return f"{result['threads']} cores of {result['cpu']['model']}"


def conditions(result: Result) -> str:
    """What the figures depend on."""
    rates = result["rates"]
    reach = (
        f" A copy moves {rates['copy'] / 1e9:.1f} GB/s here, a product makes {rates['product'] / 1e9:.0f} GFLOP/s."
        if rates["copy"] and rates["product"]
        else ""
    )
    busy = f" The machine was busy (load {result['load']} at the start): take no figure for a fact."
    return (
        f"{result['date'][:10]}, gpugrad {result['gpugrad']}, commit {(result['commit'] or 'unknown')[:12]}, Python "
        f"{result['python']}, NumPy {result['numpy']}, {result['threads']} threads, suite {result['suite']}, "
        f"{result['seconds']:.0f} s.{reach}" + (busy if result["load"] > 0.5 else "")
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def columns(result: Result) -> list[str]:
    """The peers that were asked for and are there, for the widest table."""
    names = list(dict.fromkeys(name for w in result["workloads"] for name in w["rows"]))
    return [n for n in names if any(w["rows"][n]["state"] != "missing" for w in result["workloads"] if n in w["rows"])]


def ratio(workload: Result, row: Result) -> float | None:
    """Time over torch's."""
    base = workload["rows"].get(BASE, {})
    return row["step_s"] / base["step_s"] if "step_s" in base and "step_s" in row else None


def times(result: Result) -> str:
    """Workloads down, peers across."""

    def cell(workload: Result, name: str) -> str:
        row = workload["rows"].get(name, {"state": "n/a"})
        if row["state"] != "ok":
            return WORDS[row["state"]]
        if "step_s" not in row:
            return ""
        share = ratio(workload, row)
        return f"{row['step_s'] * 1e3:.3g}" + ("" if share is None else f" ({share:.2f})")

    names = columns(result)
    timed = [w for w in result["workloads"] if any("step_s" in r or r["state"] != "ok" for r in w["rows"].values())]
    return table(["workload", *names], [[w["name"], *(cell(w, n) for n in names)] for w in timed])


def details(result: Result) -> str:
    """A line a measured peer and workload."""

    def number(value: float | None, form: str, scale: float = 1.0) -> str:
        return "" if value is None else format(value * scale, form)

    head = [
        "workload", "framework", "ms a step, quartiles", "samples/s", "first step, s", "first three, s",
        "peak host, MB", "later steps, MB", "peak device, MB", "launches", "roofline", "beside a neighbour",
    ]  # fmt: skip
    rows = []
    for w in result["workloads"]:
        for name, r in w["rows"].items():
            if r["state"] == "ok":
                spread = f"{r['low_s'] * 1e3:.3g} to {r['high_s'] * 1e3:.3g}" if "step_s" in r else ""
                rows.append([
                    w["name"], name, spread, number(r.get("samples_s"), ",.0f"), number(r["first_s"], ".3f"),
                    number(r["learned_s"], ".3f"), number(r.get("host_bytes"), ".1f", 1e-6),
                    number(r.get("steady_bytes"), ".1f", 1e-6),
                    number(r.get("device_bytes"), ".1f", 1e-6), number(r.get("launches"), "d"),
                    number(r.get("roofline"), ".0%"), number(r.get("beside"), ".1f"),
                ])  # fmt: skip
    return table(head, rows)


def computed(result: Result) -> str:
    """A line a column of ours: what its matrix products were computed in, where that is a choice."""
    found: dict[str, set[str]] = {}
    for w in result["workloads"]:
        for name, r in w["rows"].items():
            found.setdefault(name, set()).update(r.get("products") or ())
    return "\n".join(f"- Products of {name}: {', '.join(sorted(kinds))}." for name, kinds in found.items() if kinds)


def verdicts(result: Result) -> str:
    """Hit or miss, one as plainly as the other."""

    def line(t: Result) -> list[str]:
        of = f" {' or '.join(t['against'])}" if t["quantity"] == RATIO else ""
        sign = "at least" if t["quantity"] in AT_LEAST else "at most"
        value = "" if t["measured"] is None else f"{t['measured']:.2f}"
        return [t["workload"], t["peer"], t["quantity"] + of, f"{sign} {t['limit']:g}", value, t["verdict"]]

    found = judged(result)
    if not found:
        return "None of the workloads of this run has a target."
    counts = {v: sum(t["verdict"] == v for t in found) for v in ("hit", "miss", "not measured")}
    said = f"{counts['hit']} hit, {counts['miss']} missed, {counts['not measured']} not measured."
    return said + "\n\n" + table(
        ["workload", "column", "quantity", "target", "measured", ""], [line(t) for t in found]
    )  # fmt: skip


def packages(result: Result) -> str:
    """What it takes to have each."""
    rows = []
    for name, f in result["frameworks"].items():
        if "missing" in f:
            rows.append([name, "", "", "", f["missing"]])
        else:
            seconds = "" if f["import_s"] is None else f"{f['import_s']:.2f}"
            rows.append([name, f["version"] or "", seconds, f"{f['installed_mb']:.0f}", ""])
    return table(["package", "version", "import, s", "installed with what it requires, MB", ""], rows)


def profiles(result: Result, column: str) -> str:
    """A line a workload: what takes most of a step's time, and its share of the roofline where that is known."""
    copy, product = result["rates"]["copy"], result["rates"]["product"]

    def part(r: Result) -> str:
        name = r["op"] if r["phase"] in ("", "forward", "replayed") else f"{r['op']} {r['phase']}"
        known = copy and product and r.get("seconds") and r["phase"] != "backward"  # a rule's own time is Python's
        ideal = max(r["bytes"] / copy, r["flops"] / product) if known else 0.0
        return f"{name} {r['share']:.0%}" + (f" ({ideal / r['seconds']:.0%} of roofline)" if ideal else "")

    lines = []
    for w in result["workloads"]:
        rows = w["rows"].get(column, {}).get("profile") or []
        if rows:
            lines.append(f"- {w['name']}: " + ", ".join(part(r) for r in rows if r["share"] >= SHOWN))
    return "\n".join(lines)


def reasons(result: Result) -> str:
    """A line for every row without a figure."""
    rows = [
        f"- {w['name']}, {name}: {r.get('why') or 'timed, but then ' + r['unfinished']}"
        for w in result["workloads"]
        for name, r in w["rows"].items()
        if r["state"] not in ("ok", "missing") or "unfinished" in r
    ]
    return "\n".join(rows)


# --- the picture and the page -------------------------------------------------------------------------------------


def draw(result: Result, stem: Path) -> None:
    """A panel a workload: bars from torch eager's line, to the left for less time, on one logarithmic scale for all.

    Where torch has not been timed the bars are milliseconds.
    """
    from gpugrad.train.report import picture

    timed = [w for w in result["workloads"] if any("step_s" in r for r in w["rows"].values())]
    related = any("step_s" in w["rows"].get(BASE, {}) for w in timed)
    panels = []
    for w in timed:
        bars = [(n, ratio(w, r) if related else r["step_s"] * 1e3) for n, r in w["rows"].items() if "step_s" in r]
        panels.append((w["name"], [(n, v) for n, v in bars if v is not None][::-1]))
    panels = [(title, bars) for title, bars in panels if bars]
    across = max(1, min(4, len(panels)))
    down = max(1, -(-len(panels) // across))
    furthest = max((max(v, 1 / v) for _, bars in panels for _, v in bars), default=1.0) * 1.2
    with picture(stem, 3.2 * across, 0.5 + 2.1 * down) as fig:
        axes = list(fig.subplots(down, across, squeeze=False).flat)
        for ax, (title, bars) in zip(axes, panels):
            colours = ["#1f6fb4" if n.startswith("gpugrad") else "#b8b8b8" for n, _ in bars]
            start = 1 if related else 0
            ax.barh([n for n, _ in bars], [v - start for _, v in bars], left=start, color=colours)
            if related:
                ax.axvline(1, color="#444444", linewidth=0.8)
                ax.set_xscale("log")
                ax.set_xlim(1 / furthest, furthest)
            ax.set_title(title, fontsize=9)
            ax.tick_params(labelsize=7)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        fig.suptitle("time a step over that of torch eager" if related else "milliseconds a step", fontsize=10)


INTRODUCTION = """# Performance

This page is written by a command from the results of `gpugrad bench`, never by hand:

    gpugrad bench --suite full --out bench/results
    gpugrad bench --page docs/performance.md --results bench/results/bench-cpu.json

Every framework computes the same thing from the same data and the same initial weights. Before anything is timed, the
losses of its first steps (gradients, where nothing is trained) must agree with a float64 reference that is written out
in NumPy, or is gpugrad's eager mode where nobody has done so; a framework that does not agree is refused. Each runs in
a process of its own, on the same cores with the same number of threads and with empty compiler caches, and they take
turns while the others sleep. A clock is never read while a device works. The models are written once, in terms of
what each framework offers for linear layers, convolutions, normalisation, attention and losses (`gpugrad/bench/`).

The roofline is the time that the copies and products of a step would take at the rates of a large copy and a large
product in the same run. Peak host memory is over what the process held before the data was made: in all, and in later
steps alone. Targets were set before the measurement; a miss stands here like a hit. Where a step spends its time was
measured after the timing, with a clock between its parts, which makes steps of many short calls slower; what stays in
a cache can be above the roofline."""


def page(results: Sequence[Path], where: Path) -> str:
    """docs/performance.md, which is going to stand at `where`, from JSON files and the pictures beside them."""
    parts = [INTRODUCTION]
    for path in results:
        picture = path.with_suffix(".svg")
        if picture.exists():
            parts.append(
                f"![times over those of torch eager]({Path(os.path.relpath(picture, where.parent)).as_posix()})"
            )
        parts.append(markdown(read(path), 2))
    return "\n\n".join(parts).rstrip() + "\n"
