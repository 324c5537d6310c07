"""The options that `train` and `compare` share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypedDict, TypeVar

import click

from gradscale.cli.config import read_config
from gradscale.cli.errors import BadInput
from gradscale.training import PRECISIONS, SCALINGS

F = TypeVar("F", bound=Callable[..., object])
V = TypeVar("V")


class SharedOptions(TypedDict):
    """What `shared_options` adds to a command; None where nothing was said."""

    steps: int | None
    batch_size: int | None
    lr: float | None
    init_scale: float | None
    device: str | None
    emulate: str
    threads: int | None
    data: str | None
    out: Path | None
    resume: Path | None
    record: bool
    save_every: int | None
    as_json: bool
    no_color: bool


def parse_number(value: object) -> float:
    """Parse a number such as ``4096``, ``1e-3`` or ``2^16``."""
    # As scales are printed here; a shell may take `**` for names of files.
    base, power, exponent = str(value).partition("^")
    try:
        parsed = float(base) ** float(exponent) if power else float(base)
    except (ValueError, ArithmeticError):
        parsed = None
    # A negative number to a fractional power is complex.
    if not isinstance(parsed, float):
        raise click.BadParameter(f"{value!r} is not a number such as 4096, 1e-3 or 2^16.")
    return parsed


def one_of(names: Collection[str]) -> Callable[[object], str]:
    """Parse one of a few names; `click.Choice` does not say which where several are typed."""

    def parse(value: object) -> str:
        if value not in names:
            raise click.BadParameter(f"{value!r} is not one of {', '.join(names)}.")
        return str(value)

    return parse


def several(parse: Callable[[str], V]) -> Callable[[object], tuple[V, ...]]:
    """Parse comma-separated values with `parse`; repeated ones count once."""

    def parse_all(value: object) -> tuple[V, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts:
            raise click.BadParameter("needs at least one value.")
        # In order, each once.
        return tuple(dict.fromkeys(map(parse, parts)))

    return parse_all


PRECISION = click.Choice(list(PRECISIONS))
SCALING = one_of(SCALINGS)
FOLDER = click.Path(file_okay=False, path_type=Path)
NO_COLOR = click.option(
    "--no-color", is_flag=True, help="Plain text; so does the variable NO_COLOR."
)

_SHARED = (
    click.option("--steps", type=click.IntRange(min=1), help="Steps of a run.  [recipe's own]"),
    click.option("--batch-size", type=click.IntRange(min=1), help="Items a step.  [recipe's own]"),
    click.option(
        "--lr",
        type=parse_number,
        metavar="NUMBER",
        help="Peak learning rate of AdamW.  [recipe's own]",
    ),
    click.option(
        "--init-scale",
        type=parse_number,
        metavar="NUMBER",
        help="Where the scale starts.  [strategy's own]",
    ),
    click.option("--device", help="cpu, cuda, cuda:1 …  [cuda where there is one]"),
    click.option(
        "--emulate",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Half precision by rounding and float32 products; auto: where it is not native.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [recipe's own]"),
    click.option("--data", type=click.Path(file_okay=False), help="Look for data here first."),
    click.option("--out", type=FOLDER, help="Folder of the run.  [runs/NAME-DATE]"),
    click.option("--resume", type=FOLDER, help="Continue the run in this folder, bit for bit."),
    click.option(
        "--record", is_flag=True, help="Record every step and what a watch measures, for reports."
    ),
    click.option("--save-every", type=click.IntRange(min=1), help="Steps between saves.  [5 s]"),
    click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=read_config,
        is_eager=True,
        expose_value=False,
        help="TOML file with any of these options; the command line overrides it.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    NO_COLOR,
)


def shared_options(command: F) -> F:
    """Add the options that `train` and `compare` share."""
    # Decorators apply from the last to the first: so help shows them in this order.
    for option in reversed(_SHARED):
        command = option(command)
    return command


# What may be combined with --resume: it changes nothing about the training itself.
HARMLESS = {"resume", "as_json", "no_color", "save_every", "record"}


def refuse_changes_on_resume(context: click.Context) -> None:
    """A resumed run takes all its settings from its folder.

    Raises:
        BadInput: if the command line sets something else.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in HARMLESS and source == click.core.ParameterSource.COMMANDLINE:
            typed = parameter.opts[-1] if parameter.opts[-1].startswith("-") else name.upper()
            raise BadInput(
                f"`{typed}` cannot be given with `--resume`: a resumed run keeps its settings. "
                "Leave it out, or start a new run."
            )
