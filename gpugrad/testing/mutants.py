"""Mutation testing of derivative rules: faults are put into a rule one at a time, and its tests must notice each.

A mutant is a rule with one place of its source changed: a sign, factor or term lost, `+` and `-` exchanged, a constant
or comparison changed, a transposition, reduction or function dropped or exchanged, an axis or a flag changed, a branch
forced, or an input read in place of the output. It is compiled for the same globals and closure, so that rules made by
factories and the helper functions they share are changed like any other. A check that a mutant passes does not pin
its rule down.
"""

from __future__ import annotations

import ast
import copy
import functools
import linecache
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

# --- rules and the functions they call ----------------------------------------------------------------------


def plain(rule: Any) -> FunctionType | None:
    """The Python function within partials and wrappers; None for anything else."""
    while rule is not None and (not isinstance(rule, FunctionType) or hasattr(rule, "__wrapped__")):
        rule = getattr(rule, "__wrapped__", getattr(rule, "func", None))
    return rule


def rules(op: Any) -> list[FunctionType]:
    """The derivative rules of an op (or of the function that `elementwise` and its kind return), each once."""
    op = getattr(op, "op", op)
    own = [r for r in (*op.vjps, op.joint, op.jvp, op.via) if not isinstance(r, functools.partial)]
    return list(dict.fromkeys(f for f in map(plain, own) if f is not None))


def helpers(op: Any) -> list[FunctionType]:
    """What the rules of an op are made of: the functions that they call, or those call, and that take F first."""
    own = rules(op)
    queue = list(own)
    for f in queue:
        known = f.__globals__ | {
            name: cell.cell_contents for name, cell in zip(f.__code__.co_freevars, f.__closure__ or ())
        }
        for g in (plain(known.get(name)) for name in names(f.__code__)):
            if g is not None and g.__code__.co_varnames[:1] == ("F",) and g not in queue:
                queue.append(g)
    return queue[len(own) :]


def names(code: CodeType) -> list[str]:
    """The global and free names that a function and those within it read."""
    inner = [n for c in code.co_consts if isinstance(c, CodeType) for n in names(c)]
    return [*code.co_names, *code.co_freevars, *inner]


# --- source and code ----------------------------------------------------------------------------------------


@functools.lru_cache
def parsed(filename: str) -> tuple[dict[int, list[Any]], list[Any]]:
    """The syntax trees of all functions of a file by their first line, and its import statements."""
    found: dict[int, list[Any]] = {}
    module = ast.parse("".join(linecache.getlines(filename)))
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            found.setdefault(first, []).append(node)
    return found, [node for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom))]


def source(function: FunctionType) -> Any:
    """The syntax tree of a function, bare of decorators, annotations and defaults. LookupError if it is not there."""
    code = function.__code__
    for node in parsed(code.co_filename)[0].get(code.co_firstlineno, ()):
        node = copy.deepcopy(node)
        a = node.args
        a.defaults, a.kw_defaults = [ast.Constant(None) for _ in a.defaults], [None for _ in a.kw_defaults]
        for arg in filter(None, (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg)):
            arg.annotation = None
        if isinstance(node, ast.FunctionDef):
            node.decorator_list, node.returns = [], None
        name = node.name if isinstance(node, ast.FunctionDef) else "<lambda>"
        if name == code.co_name and essence(compiled(node, code)) == essence(code):
            return node
    raise LookupError(f"no source of {function.__qualname__} in {code.co_filename}")


def essence(code: CodeType) -> Any:
    """What a function's code does, whatever line it stands on."""
    named = [c for c in code.co_consts if not (isinstance(c, str) and "<locals>" in c)]  # Python 3.10 keeps inner names
    constants = [repr(essence(c)) if isinstance(c, CodeType) else repr(c) for c in named]
    return code.co_code, code.co_varnames, code.co_names, code.co_freevars, constants


def compiled(node: Any, like: CodeType) -> CodeType:
    """The code of a function's syntax tree, which has all free variables of the original even if it reads fewer."""
    around: Any = ast.parse(f"def around({', '.join(like.co_freevars)}): pass")
    around.body[0].body = [ast.Expr(node) if isinstance(node, ast.Lambda) else node]
    around.body[:0] = parsed(like.co_filename)[1]  # never run, but calls of what is imported are compiled differently
    code = compile(ast.fix_missing_locations(around), like.co_filename, "exec", dont_inherit=True)
    for name in ("around", like.co_name):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
    if code.co_freevars == like.co_freevars:
        return code
    read: Any = ast.parse(f"lambda: ({', '.join(like.co_freevars)},)").body[0]
    node = copy.copy(node)
    if isinstance(node, ast.Lambda):
        node.body = ast.Subscript(ast.Tuple([node.body, read.value], ast.Load()), ast.Constant(0), ast.Load())
    else:
        node.body = [*node.body[:-1], read, node.body[-1]]
    return compiled(node, like)


# --- mutants ------------------------------------------------------------------------------------------------

SWAPS: dict[type, tuple[Any, ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (), ast.Div: (ast.Mult,), ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,), ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.And: (ast.Or,), ast.Or: (ast.And,),
}  # fmt: skip
TWINS = {
    "sin": "cos", "cos": "sin", "sinh": "cosh", "cosh": "sinh", "exp": "expm1", "exp2": "exp", "log": "log1p",
    "sqrt": "square", "abs": "positive", "sign": "positive", "maximum": "minimum", "minimum": "maximum",
    "tril": "triu", "triu": "tril", "absorb": "multiply", "quotient": "divide", "max": "min", "min": "max",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "cumulative_sum": "positive", "softmax": "log_softmax",
    "sigmoid": "tanh", "tanh": "sigmoid",
}  # fmt: skip


def changes(node: Any, around: Any, values: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(kind, replacement) of one expression. around: what it stands in; values: the names of output and inputs."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield "sign", node.operand
    elif isinstance(node, ast.BinOp):
        for other in SWAPS.get(type(node.op), ()):
            yield "operator", ast.BinOp(node.left, other(), node.right)
        if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)):
            kind = "term" if isinstance(node.op, (ast.Add, ast.Sub)) else "factor"
            yield kind, node.left
            yield kind, node.right
    elif isinstance(node, ast.BoolOp):
        yield "comparison", ast.BoolOp(SWAPS[type(node.op)][0](), node.values)
    elif isinstance(node, ast.Compare):
        for other in SWAPS.get(type(node.ops[0]), ()):
            yield "comparison", ast.Compare(node.left, [other(), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.IfExp):
        yield "branch", node.body
        yield "branch", node.orelse
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        v: Any = node.value
        yield "constant", ast.Constant(not v if isinstance(v, bool) else {0: 1, 1: 0, 0.5: 1.0}.get(v, v + 1))
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        yield "transpose", node.value
    elif isinstance(node, ast.Call):
        yield from calls(node)
    elif isinstance(node, ast.Name) and node.id in values and not shape_only(around):
        for name in values[1:] if node.id == values[0] else values[:1]:
            yield "input", ast.Name(name, ast.Load())


def calls(node: ast.Call) -> Iterator[tuple[str, Any]]:
    """Replacements of a call: of a table function F.name(x, ...), or of a helper f(F, x, ...)."""
    f, args = node.func, node.args
    table = isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) and f.value.id == "F"
    if not table and not (args and isinstance(args[0], ast.Name) and args[0].id == "F"):
        return
    name = f.attr if isinstance(f, ast.Attribute) and table else ""
    if name in TWINS:
        twin = ast.Attribute(ast.Name("F", ast.Load()), TWINS[name], ast.Load())
        yield "function", ast.Call(twin, args, node.keywords)
    if name == "matmul":
        yield "transpose", ast.Call(f, args[::-1], node.keywords)
    of = args[1:3] if name == "where" else args[:2] if table else args[1:2]
    for arg in () if shape_only(node) else of:
        if not isinstance(arg, ast.Starred):
            yield "call", arg
    for i, k in enumerate(node.keywords):
        new: Any = None
        if k.arg == "axis":
            new = ast.Tuple([], ast.Load())
        elif k.arg in ("keepdims", "reverse") and isinstance(k.value, ast.Name):
            new = ast.UnaryOp(ast.Not(), k.value)
        if new is not None:
            yield "keyword", ast.Call(f, args, [*node.keywords[:i], ast.keyword(k.arg, new), *node.keywords[i + 1 :]])


def shape_only(around: Any) -> bool:
    """Whether just the shape or type of a value is read there."""
    if isinstance(around, ast.Attribute):
        return around.attr in ("shape", "dtype", "ndim")
    f = getattr(around, "func", None)
    return isinstance(f, ast.Attribute) and f.attr in ("zeros_like", "ones_like")


def results(root: Any) -> Iterator[Any]:
    """The expressions that a function returns, but constants and zeros; of tuples and choices their parts."""
    returns = [n.value for n in ast.walk(root) if isinstance(n, ast.Return) and n.value is not None]
    queue = [root.body] if isinstance(root, ast.Lambda) else returns
    for node in queue:
        if isinstance(node, ast.Tuple):
            queue += node.elts
        elif isinstance(node, ast.IfExp):
            queue += [node.body, node.orelse]
        elif not isinstance(node, (ast.Constant, ast.Starred)):
            zero = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "zeros_like"
            if not zero:
                yield node


def places(node: Any) -> Iterator[tuple[Any, str, int | None, Any]]:
    """Every expression as (parent, field, index in a list or None, expression), but where an error is raised."""
    for field, value in ast.iter_fields(node):
        if field == "args" and not isinstance(node, ast.Call):
            continue
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.If) and isinstance(child.body[-1], ast.Raise):
                child = ast.Module(child.orelse, [])
            if isinstance(child, ast.expr):
                yield node, field, i, child
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from places(child)


def brief(node: Any) -> str:
    """An expression or statement in at most 40 characters."""
    text = ast.unparse(node)
    return text if len(text) <= 40 else f"{text[:26]}...{text[-11:]}"


class Mutant:
    """A function with one fault, which it has within this context: `with mutant: ...`.

    function; kind, such as 'sign'; line: of its file; before, after: the changed expression, abridged; code: what runs.
    """

    def __init__(self, function: FunctionType, kind: str, line: int, before: str, after: str, code: CodeType) -> None:
        self.function, self.kind, self.line, self.code = function, kind, line, code
        self.before, self.after, self.original = before, after, function.__code__

    def __str__(self) -> str:
        return f"{self.function.__qualname__}, line {self.line}, {self.kind}: {self.before} -> {self.after}"

    def __enter__(self) -> Mutant:
        self.function.__code__ = self.code
        return self

    def __exit__(self, *_: object) -> None:
        self.function.__code__ = self.original


def mutants(function: FunctionType) -> list[Mutant]:
    """Every mutant of a rule or of a helper function, each different from the function and from all others.

    Raises LookupError where the source is not in a file.
    """
    code, root = function.__code__, source(function)
    parameters = code.co_varnames[: code.co_argcount]
    attributes = {k.value.id for k in ast.walk(root) if isinstance(k, ast.keyword) and isinstance(k.value, ast.Name)}
    rule = parameters[:1] == ("F",) and parameters[2:3] in (("out",), ("_out",))
    values = tuple(p for p in parameters[2:] if p not in attributes) if rule else ()
    found: list[Mutant] = []
    seen = {repr(essence(code))}

    def put(parent: Any, field: str, i: int | None, node: Any) -> None:
        if i is None:
            setattr(parent, field, node)
        else:
            getattr(parent, field)[i] = node

    def attempt(parent: Any, field: str, i: int | None, node: Any, kind: str, new: Any) -> None:
        put(parent, field, i, new)
        changed = compiled(root, code)
        put(parent, field, i, node)
        if (key := repr(essence(changed))) not in seen:
            seen.add(key)
            found.append(Mutant(function, kind, node.lineno, brief(node), brief(new), changed))

    returned = list(results(root))
    for parent, field, i, node in list(places(root)):
        if not isinstance(getattr(node, "ctx", None), ast.Store):
            for kind, new in changes(node, parent, values):
                attempt(parent, field, i, node, kind, new)
        if any(node is end for end in returned):
            attempt(parent, field, i, node, "sign", ast.UnaryOp(ast.USub(), node))
    for node in ast.walk(root):
        if isinstance(node, ast.If) and not isinstance(node.body[-1], ast.Raise):
            attempt(node, "test", None, node.test, "branch", ast.UnaryOp(ast.Not(), node.test))
        for i, statement in enumerate(block if isinstance(block := getattr(node, "body", None), list) else ()):
            if isinstance(statement, ast.AugAssign):
                kind = "term" if isinstance(statement.op, (ast.Add, ast.Sub)) else "factor"
                attempt(node, "body", i, statement, kind, ast.Pass())
    return found


def survivors(functions: Any, check: Callable[[], Any]) -> list[Mutant]:
    """The mutants with which `check` still passes: none, if it pins the rules down.

    functions: an op, or what `elementwise` and its kind return, for its rules and their helpers; or a list such as
    [MyFunction.backward]. check: called once a mutant, raises if a derivative is wrong, as gradcheck does; it
    must pass without one. Raises what `check` raises then, and LookupError where a source is not in a file.
    """
    if not isinstance(functions, (list, tuple)):
        functions = [*rules(functions), *helpers(functions)]
    check()
    return [m for f in functions for m in mutants(f) if passes(m, check)]


def passes(mutant: Mutant, check: Callable[[], Any]) -> bool:
    """Whether a check passes with the mutant."""
    with mutant:
        try:
            check()
        except Exception:
            return False
    return True
