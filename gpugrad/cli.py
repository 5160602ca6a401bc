"""The command line: `gpugrad train`, `gpugrad eval` and `gpugrad doctor`.

Every refusal is one line on stderr and exit code 2; GPUGRAD_DEBUG=1 shows the traceback. Ctrl-C exits with 130.
"""

from __future__ import annotations

import functools
import json
import os
import sys
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
    ]  # fmt: skip
    for decorate in reversed(options):
        command = decorate(command)
    return command


@main.command()
@settings
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--out", metavar="DIR", help="Folder of the run, new or empty.  [default: runs/001, 002, ...]")
@click.option("--resume", metavar="RUN", help="Go on with a run; --epochs, --data, --device, --quiet may be added.")
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
    fixed = sorted(given - {"resume", "epochs", "data", "device", "quiet"})
    if fixed:
        raise click.UsageError(f"--{fixed[0].replace('_', '-')} cannot change when a run is resumed")
    context.exit(job.resume(Path(resume), epochs=fields["epochs"], data=fields["data"], device=device, quiet=quiet))


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


if __name__ == "__main__":
    main()
