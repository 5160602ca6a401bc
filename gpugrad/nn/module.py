"""Module: a callable with parameters, buffers and submodules, found by assigning them to attributes."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import gpugrad as gg
from gpugrad.errors import DomainError, DTypeError, GpugradError, GraphError, describe, fail
from gpugrad.state import Handle

if TYPE_CHECKING:
    from typing_extensions import Self

PARAMETER, BUFFER, MODULE = "parameter", "buffer", "module"


class StateError(GpugradError, ValueError):
    """A saved state does not fit the module it is loaded into."""


class LoadResult(NamedTuple):
    """What `load_state_dict(strict=False)` left alone."""

    missing: list[str]
    unexpected: list[str]


def Parameter(value: Any, *, dtype: Any = None, device: str | None = None) -> gg.Tensor:
    """A new leaf tensor that requires gradients, copied from `value`; a module that it is assigned to registers it.

    Raises DTypeError for integers.
    """
    new: gg.Tensor = gg.tensor(value, dtype=dtype, device=device)
    return new.requires_grad_()


class Module:
    """Base class of layers and models: define `forward`, assign parameters and submodules to attributes, call it.

    A leaf tensor that requires gradients becomes a parameter, a Module a submodule; a parameter that is frozen later
    stays one. `register_buffer` names tensors that belong to the state without being learned. `training` starts True.
    A subclass's `__init__` need not call this one's. Raises DomainError for a name that contains a dot or is a method,
    GraphError when a computed tensor replaces a parameter.
    """

    training: bool
    _kinds: dict[str, str]  # what each registered attribute is, in the order of registration
    _before: dict[int, Callable[..., Any]]
    _after: dict[int, Callable[..., Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self.__dict__.update(training=True, _kinds={}, _before={}, _after={})
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation; subclasses define it."""
        raise NotImplementedError(f"[{type(self).__name__}] has no forward method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for before in tuple(self._before.values()):
            changed = before(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        out = self.forward(*args, **kwargs)
        for after in tuple(self._after.values()):
            changed = after(self, args, out)
            out = out if changed is None else changed
        return out

    # --- registration -----------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        self._register(name, value, self._kind_of(name, value))

    def _kind_of(self, name: str, value: Any) -> str | None:
        """What an assigned value is to the module; tensors keep what the name was before."""
        if isinstance(value, Module):
            return MODULE
        if not isinstance(value, gg.Tensor):
            return None
        before = self._kinds.get(name)
        if before == PARAMETER and not value.is_leaf:
            raise fail(
                GraphError, type(self).__name__,
                f"parameter {name} cannot become a computed tensor; assign x.detach().requires_grad_()",
            )  # fmt: skip
        return PARAMETER if before == PARAMETER or (value.is_leaf and value.requires_grad) else before

    def _register(self, name: str, value: Any, kind: str | None) -> None:
        if kind is None:
            self._kinds.pop(name, None)
        elif "." in name or not name or inspect.isfunction(getattr(type(self), name, None)):
            reason = "is a method of the class" if name and "." not in name else "is empty or contains a dot"
            raise fail(DomainError, type(self).__name__, f"a {kind} cannot be called {name!r}: the name {reason}")
        else:
            self._kinds[name] = kind
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._kinds.pop(name, None)

    def register_buffer(self, name: str, value: gg.Tensor) -> None:
        """Make a tensor part of the state (saved, moved by `to`) that is not learned."""
        self._register(name, value, BUFFER)

    # --- the tree ---------------------------------------------------------------------------------------

    def _own(self, *kinds: str) -> Iterator[tuple[str, Any]]:
        return ((name, self.__dict__[name]) for name, kind in self._kinds.items() if kind in kinds)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, submodule) pairs of this level."""
        return self._own(MODULE)

    def children(self) -> Iterator[Module]:
        """The submodules of this level."""
        return (child for _, child in self.named_children())

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """(path, module) pairs of the whole tree, itself first under the path ''; a shared module comes once."""
        return unique(self._paths())

    def _paths(self, prefix: str = "", above: tuple[Module, ...] = ()) -> Iterator[tuple[str, Module]]:
        """Every path to every module, so a shared one comes several times; a way back to an ancestor ends."""
        yield prefix, self
        for name, child in self.named_children():
            if child is not self and child not in above:
                yield from child._paths(dotted(prefix, name), (*above, self))

    def modules(self) -> Iterator[Module]:
        """Every module of the tree once, itself first."""
        return (module for _, module in self.named_modules())

    def _tensors(self, *kinds: str) -> Iterator[tuple[str, gg.Tensor]]:
        """Every path to every tensor of these kinds, so a tied one comes several times."""
        return ((dotted(path, name), t) for path, module in self._paths() for name, t in module._own(*kinds))

    def named_parameters(self) -> Iterator[tuple[str, gg.Tensor]]:
        """(path, parameter) pairs of the tree; a tied parameter comes once, a frozen one as well."""
        return unique(self._tensors(PARAMETER))

    def parameters(self) -> Iterator[gg.Tensor]:
        """Every parameter of the tree once."""
        return (p for _, p in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, gg.Tensor]]:
        """(path, buffer) pairs of the tree."""
        return unique(self._tensors(BUFFER))

    def buffers(self) -> Iterator[gg.Tensor]:
        """Every buffer of the tree once."""
        return (b for _, b in self.named_buffers())

    def num_parameters(self, trainable: bool = False) -> int:
        """Elements of all parameters, or of those not frozen."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable)

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call `fn` on every submodule, then on this one."""
        for module in reversed(list(self.modules())):
            fn(module)
        return self

    # --- state ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, gg.Tensor]:
        """Copies of all parameters and buffers by path: a snapshot that later training does not change.

        A tied tensor is saved once, under its first path.
        """
        return {name: gg.tensor(t.detach()) for name, t in unique(self._tensors(PARAMETER, BUFFER))}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy saved values (tensors or arrays) into the present tensors, cast to their dtype; addresses stay.

        A tied tensor may be given under any of its paths. Raises StateError that lists missing, unexpected and
        wrong-shape entries, before anything is written; with strict=False the first two are returned instead.
        """
        own = list(self._tensors(PARAMETER, BUFFER))
        known = dict(own)
        given = {id(t) for name, t in own if name in state}
        values = {name: gg.asarray(value) for name, value in state.items()}
        missing = [name for name, t in unique(own) if id(t) not in given]
        unexpected = [name for name in state if name not in known]
        wrong = [name for name in state if name in known and values[name].shape != known[name].shape]
        if wrong or (strict and (missing or unexpected)):
            lines = [f"missing      {name}: {describe(known[name])}" for name in missing]
            for name in unexpected:
                close = difflib.get_close_matches(name, missing, 1)
                hint = f" (is it {close[0]}?)" if close else ""
                lines.append(f"unexpected   {name}: {describe(values[name])}{hint}")
            lines += [
                f"wrong shape  {name}: {describe(values[name])}, expected {describe(known[name])}" for name in wrong
            ]
            text = "\n    ".join(["the state does not fit", *lines])
            raise fail(StateError, f"{type(self).__name__}.load_state_dict", text)
        with gg.no_grad():
            for name, t in own:
                if name in values:
                    t[...] = values[name].to(device=t.device)
        return LoadResult(missing, unexpected)

    def to(self, target: Any = None, *, device: str | None = None, dtype: Any = None) -> Self:
        """Move all parameters and buffers to a device, or cast the floating ones to a dtype, keeping every tie.

        target: a device name or a dtype. Gradients move along. Make the optimiser afterwards: its state stays behind.
        """
        for _, t in unique(self._tensors(PARAMETER, BUFFER)):
            learned, gradient = t.requires_grad, t.grad
            new = moved(t.detach(), target, device, dtype)
            if new.data is not t.data:
                t.requires_grad_(False).data = new.data
                t.requires_grad_(learned)
                if gradient is not None:
                    t.grad = moved(gradient, target, device, dtype)
        return self

    # --- modes ------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set the whole tree to training mode (dropout drops, batch statistics are used), or to evaluation mode."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set the whole tree to evaluation mode."""
        return self.train(False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Self]:
        """Evaluation mode for a block; every module gets its own mode back, also after an error."""
        modes = [(module, module.training) for module in self.modules()]
        try:
            yield self.eval()
        finally:
            for module, mode in modes:
                module.training = mode

    def requires_grad_(self, value: bool = True) -> Self:
        """Let all parameters of the tree learn, or freeze them."""
        for p in self.parameters():
            p.requires_grad_(value)
        return self

    def freeze(self) -> Self:
        """Stop recording gradients for all parameters of the tree; they stay parameters."""
        return self.requires_grad_(False)

    def unfreeze(self) -> Self:
        """Undo `freeze`."""
        return self.requires_grad_(True)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters():
            p.zero_grad()

    # --- hooks ------------------------------------------------------------------------------------------

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple[Any, ...]], Any]) -> Handle:
        """Call `hook(module, args)` before every forward; a result that is not None replaces the arguments."""
        return hang(self._before, hook)

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], Any]) -> Handle:
        """Call `hook(module, args, output)` after every forward; a result that is not None replaces the output."""
        return hang(self._after, hook)

    # --- text -------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands between the parentheses of the repr, such as '6 -> 2'."""
        return ""

    @property
    def label(self) -> str:
        """Class and settings in one line, as error messages name the module."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def __repr__(self) -> str:
        """The tree, with mode and number of parameters; a module in another mode than its parent says so."""
        total, live = self.num_parameters(), self.num_parameters(trainable=True)
        frozen = f", {total - live:,} frozen" if live < total else ""
        return self._text(f"{mode_name(self)}, {total:,} parameter{'s' * (total != 1)}{frozen}")

    def _text(self, note: str) -> str:
        note = f"  # {note}" if note else ""
        children = [
            f"({name}): {child._text('' if child.training is self.training else mode_name(child))}"
            for name, child in self.named_children()
        ]
        if not children:
            return self.label + note
        body = "\n".join(children).replace("\n", "\n  ")
        return f"{self.label[:-1]}{note}\n  {body}\n)"


def mode_name(module: Module) -> str:
    """'train' or 'eval'."""
    return "train" if module.training else "eval"


def dotted(prefix: str, name: str) -> str:
    """A path below a path."""
    return f"{prefix}.{name}" if prefix else name


def unique(pairs: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The pairs whose object has not come before."""
    seen: set[int] = set()
    for name, thing in pairs:
        if id(thing) not in seen:
            seen.add(id(thing))
            yield name, thing


def moved(t: gg.Tensor, target: Any, device: str | None, dtype: Any) -> gg.Tensor:
    """A tensor after `to`, where integers keep their dtype."""
    if isinstance(target, str) and target.partition(":")[0] in ("cpu", "cuda"):
        target, device = None, target
    floating = t.dtype.kind not in "biu"
    return t.to(device=device, dtype=(target if dtype is None else dtype) if floating else None)  # type: ignore[no-any-return]


_keys = itertools.count()


def hang(hooks: dict[int, Any], hook: Any) -> Handle:
    """Add a hook and return its handle."""
    key = next(_keys)
    hooks[key] = hook
    return Handle(hooks, key)


# --- containers ---------------------------------------------------------------------------------------------


class ModuleList(Module):
    """A list of modules, each a submodule named by its position: index, slice, assign, delete, append, iterate.

    Raises DTypeError for an entry that is not a Module.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self._fill(modules)

    def _fill(self, modules: Iterable[Module]) -> None:
        entries = list(modules)
        for i, module in enumerate(entries):
            if not isinstance(module, Module):
                raise fail(DTypeError, type(self).__name__, f"entry {i} is {describe(module)}, expected a Module")
        for name, _ in list(self.named_children()):
            delattr(self, name)
        for i, module in enumerate(entries):
            setattr(self, str(i), module)

    def __len__(self) -> int:
        return len(list(self.children()))

    def __iter__(self) -> Iterator[Module]:
        return iter(list(self.children()))

    def __getitem__(self, index: Any) -> Any:
        """A module, or a container of the same class for a slice, sharing the modules."""
        found = list(self)[index]
        return found if isinstance(found, Module) else self._of(found)

    def _of(self, modules: list[Module]) -> ModuleList:
        return type(self)(modules)

    def __setitem__(self, index: Any, value: Any) -> None:
        entries = list(self)
        entries[index] = value
        self._fill(entries)

    def __delitem__(self, index: Any) -> None:
        entries = list(self)
        del entries[index]
        self._fill(entries)

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns the container."""
        return self.extend([module])

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; returns the container."""
        self._fill([*self, *modules])
        return self


class Sequential(ModuleList):
    """Modules applied one after the other; a list of them as well."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def _of(self, modules: list[Module]) -> Sequential:
        return type(self)(*modules)

    def forward(self, x: Any) -> Any:
        """x through every module in turn."""
        for module in self.children():
            x = module(x)
        return x


class ModuleDict(Module):
    """Modules by name. Raises DTypeError for an entry that is not a Module, DomainError as `Module` for a name."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        for name, module in (modules or {}).items():
            self[name] = module

    def __getitem__(self, name: str) -> Module:
        return dict(self.items())[name]

    def __setitem__(self, name: str, module: Module) -> None:
        if not isinstance(module, Module):
            raise fail(DTypeError, type(self).__name__, f"{name} is {describe(module)}, expected a Module")
        setattr(self, name, module)

    def __delitem__(self, name: str) -> None:
        delattr(self, name)

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def keys(self) -> list[str]:
        """The names, in order of assignment."""
        return [name for name, _ in self.named_children()]

    def values(self) -> list[Module]:
        """The modules, in the same order."""
        return list(self.children())

    def items(self) -> list[tuple[str, Module]]:
        """(name, module) pairs, in the same order."""
        return list(self.named_children())
