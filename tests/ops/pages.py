"""Write docs/ops: one page an op, and an index.

    python -m tests.ops.pages

What a page says comes from the table, from the sources of rules and kernels, from docs/kinks.md, docs/agreement.md and
bench/results, and its measured errors from docs/ops/measured.json (`python -m tests.ops.report --measure`).
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpugrad as gg
import gpugrad.nn.functional
from gpugrad.accuracy import BOUNDS
from gpugrad.kernel import Kernel, find_kernels
from gpugrad.op import Op
from gpugrad.rules import KEEP, SHAPE
from tests import test_array_api

from .report import MEASURED, ROOT, entries, family
from .samples import collect

DOCS, OPS = ROOT / "docs" / "ops", ROOT / "gpugrad" / "ops"
OTHER = {"gather"}  # a public function of that name means something else
LONG = 60  # lines of source, beyond which a page names the function only
SAMPLES = collect()
KINDS = {
    "elementwise": "elementwise: one derivative an input serves both directions",
    "linear": "linear in all inputs jointly: forward mode is the op itself",
    "multilinear": "linear in each input: forward mode is the product rule",
    "general": "general: rules of its own for both directions",
    "nondiff": "no derivative exists",
    "update": "writes to its first arguments; no result, no derivative",
}


# --- sources --------------------------------------------------------------------------------------------------------


@functools.cache
def statements(path: Path) -> list[tuple[int, int, str, ast.stmt]]:
    """The top-level statements of a file: first line, last line, text, tree."""
    text = path.read_text(encoding="utf-8")
    lines, found = text.splitlines(), []
    for node in ast.parse(text).body:
        first = min([node.lineno, *[d.lineno for d in getattr(node, "decorator_list", [])]])
        last = node.end_lineno or node.lineno
        found.append((first, last, "\n".join(lines[first - 1 : last]), node))
    return found


def unwrapped(rule: Any) -> Iterator[Any]:
    """The Python functions that a rule is made of: partials, wrappers and closures taken apart."""
    rule = getattr(rule, "func", rule)
    rule = getattr(rule, "__wrapped__", rule)
    if not hasattr(rule, "__code__"):
        return
    inner = [c.cell_contents for c in rule.__closure__ or () if callable(c.cell_contents)]
    yield rule
    for function in inner:
        if hasattr(function, "__code__"):
            yield from unwrapped(function)


def functions(op: Op) -> list[Any]:
    """The code of an op: forward, rules, composition."""
    return [f for f in (op.fwd, op.impls.special.get("cpu"), *op.vjps, op.joint, op.jvp, op.via) if callable(f)]


def names(node: ast.stmt, name: str) -> bool:
    """Whether a statement calls something with the op's name as first argument."""
    return any(
        isinstance(call, ast.Call)
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and call.args[0].value == name
        for call in ast.walk(node)
    )


@functools.cache
def defined() -> dict[str, tuple[Path, int]]:
    """Where the text defines each op that a constructor is given by name: file and statement."""
    found: dict[str, tuple[Path, int]] = {}
    for path in sorted(OPS.glob("*.py")):
        for i, (*_, node) in enumerate(statements(path)):
            if isinstance(node, (ast.Assign, ast.Expr)):
                for call in ast.walk(node):
                    if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
                        constructor = getattr(call.func, "id", "")
                        if isinstance(call.args[0].value, str) and constructor not in ("", "fail", "getattr"):
                            found.setdefault(call.args[0].value, (path, i))
    return found


def pieces(op: Op) -> list[tuple[Path, int]]:
    """The statements in gpugrad/ops that make up an op, in the order of the text."""
    found = set()
    if op.name in defined():
        found.add(defined()[op.name])
    for function in functions(op):
        for part in unwrapped(function):
            path, line = Path(part.__code__.co_filename), part.__code__.co_firstlineno
            if path.parent == OPS and path.name[0] != "_":
                found |= {(path, i) for i, (a, b, *_) in enumerate(statements(path)) if a <= line <= b}
    own = [p for p in found if op.name in defined() and p[0] == defined()[op.name][0]]
    return sorted(own or found)


def source(op: Op) -> list[str]:
    """The text of the statements, long ones by their first lines alone."""
    parts = []
    for path, i in pieces(op):
        text = statements(path)[i][2]
        lines = text.splitlines()
        parts.append(text if len(lines) <= LONG else "\n".join(lines[:3]) + f"\n    ...  # {len(lines) - 3} lines more")
    return parts


def kernel_header(kernel: Kernel) -> str:
    """The comment over a kernel, and that at the top of its file."""
    text = (find_kernels() / f"{kernel.family}.cu").read_text(encoding="utf-8")
    lines = text.splitlines()
    top = [line[2:].strip() for line in lines[: next(i for i, x in enumerate(lines) if not x.startswith("//"))]]
    at = next((i for i, x in enumerate(lines) if re.search(rf"\b{kernel.name}\s*\(", x) and "__global__" in x), 0)
    own: list[str] = []
    while at and not own:
        at -= 1
        if lines[at].startswith("//"):
            while lines[at].startswith("//"):
                own.insert(0, lines[at][2:].strip())
                at -= 1
        elif not lines[at].startswith("template"):
            break
    head = "\n\n".join(" ".join(part.split()) for part in "\n".join(top).split("\n\n"))
    return head + (f"\n\n`{kernel.name}`: " + " ".join(own) if own and own != top else "")


# --- facts ----------------------------------------------------------------------------------------------------------


@functools.cache
def public() -> dict[str, tuple[str, Callable[..., Any]]]:
    """The public function of each op, by name: where it stands and the function."""
    found = {}
    places = [("gpugrad", gg), ("gpugrad.linalg", gg.linalg), ("gpugrad.fft", gg.fft), ("gpugrad.random", gg.random),
              ("gpugrad.special", gg.special), ("gpugrad.nn.functional", gpugrad.nn.functional)]  # fmt: skip
    for place, module in reversed(places):
        found |= {n: (f"{place}.{n}", f) for n, f in vars(module).items() if inspect.isfunction(f) and n[0] != "_"}
    return found


@functools.cache
def standard() -> frozenset[str]:
    """The names of the Array API standard, from the table of signatures that the tests hold."""
    text = re.sub(r"\(.*?\)\n", "\n", test_array_api.MAIN + test_array_api.LINALG + test_array_api.FFT)
    return frozenset(text.split())


def first_sentence(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def documentation(op: Op) -> tuple[str, str]:
    """(signature, sentence): those of the public function, else of the op, else of its forward function."""
    if op.name in public() and op.name not in OTHER:
        path, function = public()[op.name]
        own = getattr(function, "op", None) is op
        shown = "(" + ", ".join("xyz"[: len(op.vjps)]) + ")" if own else str(inspect.signature(function))
        shown = re.sub(r": [^,)=]+(?= =|[,)])", "", shown).replace(" = ", "=").partition(" ->")[0]
        return f"{path}{shown}", first_sentence(function.__doc__)
    texts = [op.call.__doc__, *[part.__doc__ for function in functions(op) for part in unwrapped(function)]]
    return f"F.{op.name}, in rules and compositions", next(filter(None, map(first_sentence, texts)), backward(op))


def backward(op: Op) -> str:
    """A sentence for a backward op without one, from its name."""
    stem, _, part = op.name.rpartition("_")
    return f"A part of the derivative of {stem}: its vjp as an op of its own." if part in ("bwd", "pick") else ""


def inputs(op: Op) -> list[str]:
    """The names of an op's array arguments, as its first rule or its forward has them."""
    n = len(SAMPLES[op.name][0].args)
    for function, skipped in [*((r, 3) for r in (*op.vjps, op.joint) if r), (op.fwd, 1)]:
        for part in unwrapped(function) if callable(function) else ():
            code = part.__code__
            listed = code.co_varnames[skipped : code.co_argcount][:n]
            if len(listed) == n:
                return [re.sub(r"^_|_shape$", "", name) for name in listed]
    return [f"input {i + 1}" for i in range(n)]


def saved(op: Op) -> str:
    """What a recorded call keeps when every input needs a gradient."""
    codes = op.keep((2 << len(SAMPLES[op.name][0].args)) - 1)
    labels = ["the result", *inputs(op), "what the forward gives beside the result"]
    kept = [label if c == KEEP else f"the shape of {label}" for label, c in zip(labels, codes) if c in (KEEP, SHAPE)]
    return ", ".join(kept) or "nothing"


@functools.cache
def kinks() -> list[tuple[str, str]]:
    """Rows of the kink table: expression and row."""
    text = (ROOT / "docs" / "kinks.md").read_text(encoding="utf-8")
    return [(m[1], m[0]) for m in re.finditer(r"^\| `(.+?)` \|.*\|$", text, re.M)]


@functools.cache
def agreement() -> dict[str, str]:
    """The distance between the CPU and the CUDA backend, by op."""
    text = (ROOT / "docs" / "agreement.md").read_text(encoding="utf-8")
    found = {m[1]: f"{m[2]} ulp" for m in re.finditer(r"^\| (\w+) \|[^|]*\| ([\d.]+) \|$", text, re.M)}
    equal = re.search(r"^Bit for bit equal: (.*)\.$", text, re.M)
    return found | dict.fromkeys(equal[1].split(", ") if equal else [], "bit for bit equal")


@functools.cache
def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return found


def accuracy(name: str) -> str:
    """The measured errors of an op in words."""
    row = measured()["ops"].get(name, {})
    if "float32" in row:
        unit = "" if row["kind"] == "elementwise" else ", in the unit of tests/ops/accuracy.py"
        unit += f", {BOUNDS[name]:g} compiled, in the unit of gpugrad/accuracy.py" if name in BOUNDS else ""
        return (
            f"at most {row['float32']:.2f} ulp in float32 and {row['float64']:.2f} in float64 against exact arithmetic "
            f"(bound {row['bound']:g}{unit})"
        )
    if "rounding" in row:
        return f"float32 differs from float64 by at most {row['rounding']:.2f} ulp of the largest value"
    return "exact, or not a floating-point function"


@functools.cache
def frames() -> dict[str, list[float]]:
    path = ROOT / "bench" / "results" / "overhead-cpu.json"
    found: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))["frames"]
    return found


# --- pages ----------------------------------------------------------------------------------------------------------


def page(op: Op) -> str:
    """One op."""
    shown, sentence = documentation(op)
    special, own = op.impls.special, op.impls.special.get("cuda")
    lines = [f"# {op.name}", "", sentence, "", f"    {shown}", ""]
    facts = [f"Family: `gpugrad/ops/{family(op)}.py`", f"Kind: {KINDS[op.kind]}"]
    if op.name in standard():
        facts.append(f"Array API: `{op.name}`")
    if isinstance(op.fwd, str):
        facts.append(
            f"Value: `{special.get('cpu', op.fwd) if isinstance(special.get('cpu'), str) else op.fwd}` of NumPy or CuPy"
        )
    if op.differentiable:
        facts.append(f"Kept for the gradient: {saved(op)}")
        facts.append(
            f"Derivative of a recorded call: {'of its composition' if op.via else 'its rules, themselves recorded'}"
        )
    if isinstance(own, Kernel) and own.family:
        facts.append(f"CUDA: `{own.name}` in `kernels/{own.family}.cu`")
    elif own is not None:
        facts.append(
            "CUDA: a library call" if isinstance(own, Kernel) else "CUDA: its own composition of CuPy functions"
        )
    else:
        facts.append("CUDA: the same function on CuPy arrays")
    facts.append(f"Accuracy: {accuracy(op.name)}")
    if op.name in agreement():
        facts.append(f"CUDA against CPU, on the emulator: {agreement()[op.name]}")
    if op.name in frames():
        forward, backward = frames()[op.name]
        facts.append(f"Cost: {forward:g} Python frames a recorded call, {backward:g} backward")
    lines += [f"- {fact}" for fact in facts]
    rows = [row for expression, row in kinks() if re.search(rf"(?<![\w.]){op.name}\(", expression)]
    if rows:
        lines += ["", "## Kinks", "", "| expression | x | value | slope |", "|---|---|---|---|", *rows]
    if isinstance(own, Kernel) and own.family:
        lines += ["", "## Kernel", "", kernel_header(own)]
    text = source(op)
    if text:
        lines += ["", "## Source", "", "```python", "\n\n".join(map(textwrap.dedent, text)), "```"]
    return "\n".join(lines) + "\n"


def index(table: dict[str, Op]) -> str:
    """All ops by family."""
    found = measured()
    families = defaultdict(list)
    for op in table.values():
        families[family(op)].append(op)
    lines = [
        "# The ops", "",
        f"{len(table)} ops in {len(families)} families, by `python -m tests.ops.pages`. Errors in float32 / float64:",
        f"NumPy {found['numpy']} on {found['machine']}, {found['date']} (`python -m tests.ops.report --measure`).",
    ]  # fmt: skip
    for name, ops in sorted(families.items()):
        able = sum(op.differentiable for op in ops)
        lines += [
            "",
            f"## {name} ({len(ops)}, {able} differentiable)",
            "",
            "| op | what it is | worst error |",
            "|---|---|---|",
        ]
        for op in sorted(ops, key=lambda op: op.name):
            row = found["ops"].get(op.name, {})
            error = f"{row['float32']:.1f} / {row['float64']:.1f} ulp" if "float32" in row else ""
            lines.append(
                f"| [{op.name}]({op.name}.md) | {documentation(op)[1].replace('|', chr(92) + '|')} | {error} |"
            )
    return "\n".join(lines) + "\n"


def build() -> dict[str, str]:
    """All pages by file name."""
    table = entries()
    return {"index.md": index(table)} | {f"{name}.md": page(op) for name, op in table.items()}


def main() -> int:
    """Write the pages, and remove those of ops that are gone."""
    DOCS.mkdir(parents=True, exist_ok=True)
    made = build()
    for path in DOCS.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (DOCS / name).write_text(text, encoding="utf-8")
    print(f"{len(made)} pages in docs/ops")
    return 0


if __name__ == "__main__":
    sys.exit(main())
