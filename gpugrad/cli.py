"""The command line: `gpugrad train`, `gpugrad eval`, `gpugrad bench`, `gpugrad warmup` and `gpugrad doctor`.

Every refusal is one line on stderr and exit code 2; GPUGRAD_DEBUG=1 shows the traceback. Ctrl-C exits with 130.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpugrad as gg
from gpugrad.errors import GpugradError

try:
    import click
    from click.core import ParameterSource
except ModuleNotFoundError:
    print("error: click is not installed: pip install 'gpugrad[train]'", file=sys.stderr)
    raise SystemExit(2) from None


class OneLine(click.Group):
    """A command group whose errors are one line on stderr."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run and exit: 0, 2 after an error, 130 after Ctrl-C."""
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except click.Abort:
            click.echo("interrupted", err=True)
            code = 130
        except (click.ClickException, GpugradError, OSError) as error:
            if os.environ.get("GPUGRAD_DEBUG"):
                raise
            click.echo(f"error: {one_line(error)}", err=True)
            code = 2
        sys.exit(code if isinstance(code, int) else 0)


def one_line(error: Exception) -> str:
    """An error's message on one line, without the call site that library errors carry."""
    if isinstance(error, click.ClickException):
        return " ".join(error.format_message().split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).partition("\n  at ")[0].split())


@click.group(cls=OneLine, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gg.__version__, prog_name="gpugrad")
@click.pass_context
def main(context: click.Context) -> None:
    """A tensor autograd engine for NumPy and NVIDIA GPUs: train a network, evaluate a run, examine the machine."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


class Widths(click.ParamType[tuple[int, ...]]):
    """Comma-separated layer widths, such as 128,64."""

    name = "widths"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        """The widths as a tuple."""
        try:
            return value if isinstance(value, tuple) else tuple(int(n) for n in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of widths such as 128,64", param, context)


def settings(command: Callable[..., None]) -> Callable[..., None]:
    """The options that decide a run's configuration, declared in the order of the help page."""
    from gpugrad.train.config import DTYPES, MODELS, RATES, SCHEDULES, Config

    option, shown = click.option, functools.partial(click.option, show_default=True)
    options = [
        option("--data", metavar="DIR", help="Folder of IDX files as MNIST's.  [default: scikit-learn's digits]"),
        shown("--model", type=click.Choice(MODELS), default=Config.model),
        option("--hidden", type=Widths(), help="Widths of the MLP's hidden layers.  [default: 512]"),
        shown("--optimizer", type=click.Choice(list(RATES)), default=Config.optimizer),
        option("--lr", type=float, help="Learning rate.  [default: suits the optimizer]"),
        option("--momentum", type=float, help="For sgd (default 0.9) and rmsprop (default 0)."),
        option("--weight-decay", type=float, help="[default: 0.01 for adamw, else 0]"),
        shown("--schedule", type=click.Choice(SCHEDULES), default=Config.schedule, help="Its course."),
        shown("--batch-size", type=int, default=Config.batch_size),
        option("--epochs", type=int, help="Passes over the training data.  [default: 30 for the digits, else 10]"),
        shown("--seed", type=int, default=Config.seed, help="Decides initialisation, order and noise."),
        shown("--dtype", type=click.Choice(DTYPES), default=Config.dtype),
        option("--early-stop", type=int, metavar="N", help="Hold out a tenth of the training data; stop after N epochs"
               " without a better loss on it, and use the best."),
        shown("--log-every", type=int, default=Config.log_every, help="Steps between two lines of the log."),
        shown("--replay/--no-replay", default=Config.replay, help="Trace the step once, then run it without Python:"
              " the same numbers sooner."),
    ]  # fmt: skip
    for decorate in reversed(options):
        command = decorate(command)
    return command


@main.command()
@settings
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--out", metavar="DIR", help="Folder of the run, new or empty.  [default: runs/001, 002, ...]")
@click.option("--resume", metavar="RUN", help="Go on with a run; --epochs, --data, --device, --replay, --quiet may"
              " be added.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="Print the result only.")
def train(device: str, out: str | None, resume: str | None, quiet: bool, **fields: Any) -> None:
    """Train a network and leave a run folder.

    With no arguments: a small network on the handwritten digits of scikit-learn, in seconds. The folder holds metrics,
    pictures, configuration, environment card and a checkpoint. Ctrl-C keeps it; --resume goes on.
    """
    context = click.get_current_context()
    from gpugrad.train import job
    from gpugrad.train.config import Config

    if resume is None:
        context.exit(job.start(Config(**fields), device=device, out=out, quiet=quiet))
    given = {k for k in context.params if context.get_parameter_source(k) is ParameterSource.COMMANDLINE}
    fixed = sorted(given - {"resume", "epochs", "data", "device", "replay", "quiet"})
    if fixed:
        raise click.UsageError(f"--{fixed[0].replace('_', '-')} cannot change when a run is resumed")
    changes = {name: fields[name] for name in ("epochs", "data", "replay") if name in given}
    context.exit(job.resume(Path(resume), device=device, quiet=quiet, **changes))


@main.command("eval")
@click.argument("run")
@click.option("--data", metavar="DIR", help="Another folder of IDX files than the run's own.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(run: str, data: str | None, device: str, as_json: bool) -> None:
    """Score a run on its test set.

    RUN: its folder, or a checkpoint file.
    """
    from gpugrad.train import job

    job.evaluate_run(Path(run), data=data, device=device, as_json=as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Say what works on this machine.

    Exit code 1 if a part is broken; one that is merely absent, such as a GPU, is no fault.
    """
    from gpugrad import doctor as office

    findings = office.examine()
    click.echo(json.dumps(office.report(findings), indent=1) if as_json else "\n".join(office.lines(findings)))
    click.get_current_context().exit(int(any(f.state == office.BROKEN for f in findings)))


@main.command()
@click.option("--device", default="cuda", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--dtypes", default="float32", show_default=True, help="Comma-separated, such as float32,bfloat16.")
@click.option("--only", metavar="FAMILIES", default="", help="Comma-separated, such as loss,softmax.  [default: all]")
def warmup(device: str, dtypes: str, only: str) -> None:
    """Compile the kernels ahead of time.

    They stay in the caches on disk, so that the first training step does not wait for a compiler.
    """
    from gpugrad import warmup as heater

    start = time.perf_counter()
    say = functools.partial(click.echo, err=True)
    count = heater.warm(device, dtypes.split(","), [f for f in only.split(",") if f], say)
    click.echo(f"{count} kernels ready after {time.perf_counter() - start:.1f} s")


class Words(click.ParamType[tuple[str, ...]]):
    """Comma-separated words."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        """The words as a tuple."""
        return value if isinstance(value, tuple) else tuple(w for w in value.split(",") if w)


@main.command()
@click.option("--against", type=Words(), default="torch,jax,autograd,mygrad,tinygrad,numpy", show_default=True,
              help="Frameworks, or columns such as torch.compile.")  # fmt: skip
@click.option("--workloads", type=Words(), help="Such as mlp-sgd,xent:4096x10.  [default: the suite's]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--suite", type=click.Choice(["quick", "full"]), default="quick", show_default=True,
              help="quick: under two minutes. full: all that has a target; under eight on a GPU.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Measurements of each.")
@click.option("--threads", type=click.IntRange(1), help="Of every framework alike.  [default: the cores at hand]")
@click.option("--limit", type=click.FloatRange(1), metavar="SECONDS", help="For everything.  [default: the suite's]")
@click.option("--out", metavar="DIR", default="bench-out", show_default=True, help="Folder of JSON, table, picture.")
@click.option("--page", metavar="FILE", help="Measure nothing; write the page from --results.")
@click.option("--results", metavar="JSON", multiple=True, help="A result to put on the page; may be repeated.")
def bench(
    against: tuple[str, ...], workloads: tuple[str, ...] | None, device: str, suite: str, rounds: int,
    threads: int | None, limit: float | None, out: str, page: str | None, results: tuple[str, ...],
) -> None:  # fmt: skip
    """Time training steps beside other frameworks.

    The same data, weights and steps in each; one whose first losses are wrong is refused and not timed. Leaves
    bench-DEVICE.json, .md and .svg in the folder, and prints the tables.
    """
    from gpugrad.bench import report, runner
    from gpugrad.bench.peers import select
    from gpugrad.bench.workloads import SUITES, find

    if page is not None or results:
        if page is None or not results:
            raise click.UsageError("--page and --results belong together")
        text = report.page([Path(r) for r in results], Path(page))
        Path(page).write_text(text)
        return
    for name in workloads or ():
        find(name)
    columns = select(list(against), suite, device)
    gg.synchronize(device) if device != "cpu" else None
    options = runner.Options(
        device, suite, limit or runner.LIMITS[suite, device], rounds, say=functools.partial(click.echo, err=True)
    )
    options.threads = threads or options.threads
    result = runner.run(list(workloads or SUITES[suite, device]), columns, options)
    files = report.write(result, Path(out))
    show(report.markdown(result))
    picture = "" if len(files) == 3 else "; no picture: matplotlib is not installed"
    click.echo("written: " + ", ".join(map(str, files)) + picture, err=True)


def show(text: str) -> None:
    """Markdown on a terminal as a terminal can, elsewhere as it is."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.markdown import Markdown
        except ModuleNotFoundError:
            pass
        else:
            Console().print(Markdown(text))
            return
    click.echo(text)


if __name__ == "__main__":
    main()
