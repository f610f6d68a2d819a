"""``raytuner`` on the command line: parse, call, print. Wrong input is answered by a sentence, and with status 2."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from raytuner import __version__

if TYPE_CHECKING:
    from raytuner.plan import Forecast
    from raytuner.protocols import SchedulingPolicy


class _Refused(click.ClickException):
    """What was asked for cannot be done."""

    exit_code = 2


@contextmanager
def _at_the_door() -> Iterator[None]:
    """Errors about what the user gave, as sentences."""
    from raytuner.checkpoints import DamagedCheckpoint
    from raytuner.driver import ReplayDiffers
    from raytuner.record.lock import StudyInUse
    from raytuner.record.segments import DamagedSegment

    try:
        yield
    except (ValueError, TypeError, OSError, DamagedSegment, DamagedCheckpoint, ReplayDiffers, StudyInUse) as error:
        raise _Refused(str(error)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="raytuner")
def main() -> None:
    """Hyperparameter tuning on Ray."""


# -------------------------------------------------------------------------------------------------------------- plan


@main.command()
@click.argument("study", type=click.Path())
@click.option(
    "--workers", type=click.IntRange(min=1), multiple=True, required=True, help="Trials at a time. Repeatable."
)
@click.option("--num-samples", type=int, help="Trials to start.  [default: as recorded]")
@click.option("--scheduler", metavar="NAME", help="Another scheduler, e.g. ASHAScheduler.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting of the scheduler. Repeatable.")
@click.option("--steps", type=click.IntRange(min=1), help="Full budget of a trial.  [default: the longest recorded]")
@click.option("--seconds-per-step", type=float, help="How long a step takes.  [default: as recorded]")
@click.option("--gpus-per-trial", type=float, help="[default: as recorded]")
@click.option("--price", type=float, help="Of a GPU for an hour.")
@click.option("--seed", type=click.IntRange(min=0), help="[default: as recorded]")
@click.option("--fault", "faults", metavar="NAME=RATE", multiple=True, help="What goes wrong, e.g. worker_loss=1e-4.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, with an object for each --workers.")
def plan(
    study: str,
    workers: Sequence[int],
    num_samples: int | None,
    scheduler: str | None,
    settings: Sequence[str],
    steps: int | None,
    seconds_per_step: float | None,
    gpus_per_trial: float | None,
    price: float | None,
    seed: int | None,
    faults: Sequence[str],
    as_json: bool,
) -> None:
    """Price a sweep before paying for it.

    Runs the study in the folder STUDY once more on a virtual clock, with as many workers as you say and whatever else
    you change. Trials learn as the recorded ones did: each has the curve of the recorded trial whose configuration is
    nearest to its own, and goes on beyond that one's end like the nearest that got so far. Nothing is written, and no
    Ray is needed.

    \b
    Examples:
      raytuner plan results/first --workers 8
      raytuner plan results/first --workers 16 --workers 64 --workers 256 --num-samples 2000
      raytuner plan results/first --workers 64 --scheduler ASHAScheduler --set reduction_factor=3
      raytuner plan results/first --workers 64 --fault worker_loss=1e-4 --fault slow_workers=0.1
    """
    from raytuner.curves import Recorded
    from raytuner.plan import Faults, settings_of, simulate

    with _at_the_door():
        recorded = Recorded(study)
        tune_config, run_config, gpus = settings_of(recorded)
        changes: dict[str, Any] = {
            name: value for name, value in (("num_samples", num_samples), ("seed", seed)) if value is not None
        }
        if scheduler is not None or settings:
            changes["scheduler"] = _scheduler(
                scheduler, tune_config.scheduler, _pairs("--set", settings), recorded.steps
            )
        going_wrong = Faults(**_known("--fault", _pairs("--fault", faults), Faults))
        forecasts = [
            simulate(
                recorded.space,
                curve=recorded,
                workers=number,
                tune_config=replace(tune_config, **changes),
                run_config=run_config,
                steps=steps,
                seconds_per_step=seconds_per_step,
                gpus_per_trial=gpus if gpus_per_trial is None else gpus_per_trial,
                price=price,
                faults=going_wrong,
            )
            for number in workers
        ]
    if as_json:
        click.echo(json.dumps([forecast.to_json() for forecast in forecasts], indent=2, default=repr))
    elif len(forecasts) == 1:
        click.echo(forecasts[0])
    else:
        _print_beside(forecasts)


def _scheduler(
    name: str | None, recorded: SchedulingPolicy | None, settings: Mapping[str, Any], steps: int
) -> SchedulingPolicy:
    """The scheduler that was asked for: the recorded one with other settings, or another, up to the recorded steps."""
    from raytuner.schedulers import SCHEDULERS

    if name is None:
        assert recorded is not None
        if not is_dataclass(recorded):
            raise ValueError(f"--set needs --scheduler: the study's {type(recorded).__name__} is not raytuner's own")
        return replace(recorded, **_known("--set", settings, type(recorded)))
    if name not in SCHEDULERS:
        raise ValueError(f"--scheduler must be one of {', '.join(SCHEDULERS)}; got {name}")
    kind: type[Any] = SCHEDULERS[name]
    settings = _known("--set", settings, kind)
    has_most = "max_t" in {field.name for field in fields(kind)}
    made: SchedulingPolicy = kind(**{"max_t": steps, **settings} if has_most else settings)
    return made


def _pairs(option: str, given: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE``s; a value is JSON if it can be read as such, else text."""
    pairs: dict[str, Any] = {}
    for each in given:
        key, equals, text = each.partition("=")
        if not key or not equals:
            raise ValueError(f"{option} must be KEY=VALUE, got {each!r}")
        try:
            pairs[key] = json.loads(text)
        except ValueError:
            pairs[key] = text
    return pairs


def _known(option: str, given: Mapping[str, Any], kind: type[Any]) -> Mapping[str, Any]:
    names = [field.name for field in fields(kind) if field.init]
    for name in given:
        if name not in names:
            has = f"has {', '.join(names)}" if names else "has no settings"
            raise ValueError(f"{option} {name}=…: {kind.__name__} {has}")
    return given


def _print_beside(forecasts: Sequence[Forecast]) -> None:
    """One column for each."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rows = [forecast.figures() for forecast in forecasts]
    names = dict.fromkeys(name for row in rows for name in row)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="")
    table.add_column("workers")
    for forecast in forecasts:
        table.add_column(f"{forecast.workers:,}", justify="right")
    for name in names:
        table.add_row(name, *(row.get(name, "") for row in rows))
    Console(highlight=False).print(table)


# -------------------------------------------------------------------------------------------------------------- sync


@main.command()
@click.argument("study", type=click.Path())
@click.option(
    "--callback",
    "names",
    metavar="NAME",
    multiple=True,
    help="A logger, e.g. CSVLoggerCallback, or MODULE:ATTRIBUTE: a callback, its class, or a function that makes it. "
    "Repeatable.  [default: the loggers of raytuner's own that the study had]",
)
@click.option("--from-start", is_flag=True, help="Tell everything again, from the beginning.")
def sync(study: str, names: Sequence[str], from_start: bool) -> None:
    """Tell callbacks and loggers what they have not yet heard of a study.

    When a study ends its callbacks have a deadline. This tells them the rest of what is recorded in the folder STUDY,
    with as much time as they need. Ctrl-C leaves; what was heard by then is not told again.

    \b
    Examples:
      raytuner sync results/first
      raytuner sync results/first --callback JsonLoggerCallback
      raytuner sync results/first --callback my_project.tracking:MyCallback
    """
    from raytuner import sync as deliver

    with _at_the_door():
        done = deliver(study, [_callback(name) for name in names] if names else None, from_start=from_start)
    for each in done:
        errors = f", {each.errors} of which raised" if each.errors else ""
        rest = f"; not told everything: {each.rest}" if each.rest else ""
        click.echo(f"{each.name}: {each.calls:,} calls{errors}{rest}")
    if not done:
        click.echo("The study has no callbacks. Give one with --callback.")
    if any(each.errors or each.rest for each in done):
        raise SystemExit(1)


def _callback(name: str) -> Any:
    """The callback of this name, made if need be."""
    import importlib
    import sys

    from raytuner.logger import LOGGERS

    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in LOGGERS:
            raise ValueError(f"--callback must be MODULE:ATTRIBUTE or one of {', '.join(LOGGERS)}; got {name}")
        return LOGGERS[name]()
    if "" not in sys.path:
        sys.path.insert(0, "")  # as under `python -m`
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--callback {name}: {error}") from error
    made: Any = found
    if not isinstance(made, type) and hasattr(made, "on_trial_result"):
        return made
    if not callable(made):
        raise ValueError(f"--callback {name} is no callback, nor does it make one: {made!r:.80}")
    return made()
