"""`gradscale compare`: one network, one data set, every scaling strategy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from gradscale.cli.display import Display, console
from gradscale.cli.errors import bad_input
from gradscale.cli.options import (
    SCALING,
    SharedOptions,
    parse_number,
    refuse_changes_on_resume,
    several,
    shared_options,
)
from gradscale.cli.prose import say
from gradscale.cli.renamed import renamed
from gradscale.cli.run_folder import begun_with, make_folder, new_folder, training_in
from gradscale.cli.table import caption, comparison_table
from gradscale.files.json_text import json_value, write_json
from gradscale.recipes import RECIPES, Data, find
from gradscale.training import (
    COMPARED,
    Comparison,
    Planned,
    RunFolder,
    RunResult,
    StopRequest,
    Summary,
    load_data,
    only_writer,
    run,
    summaries_of,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

Results = dict[Path, RunResult]
"""What every run ended with, by its folder."""


class CompareOptions(SharedOptions):
    """What was typed."""

    recipe: str
    format: str
    policy: tuple[str, ...] | None
    loss_divisor: tuple[float, ...] | None
    seeds: int


@click.command(name="compare", short_help="Train with every scaling strategy; ends with a table.")
@click.argument("recipe", type=click.Choice(list(RECIPES)), default="digits", metavar="[RECIPE]")
@click.option(
    "--format",
    type=click.Choice(["fp16", "bf16", "e5m2", "e4m3"]),
    default="fp16",
    show_default=True,
    help="Of every row but float32.",
)
@click.option(
    "--policy",
    type=several(SCALING),
    metavar="NAME,…",
    help="Strategies, listed by `gradscale train --help`.  [none, all policies, torch]",
)
@click.option(
    "--loss-divisor",
    type=several(parse_number),
    metavar="NUMBER,…",
    help="Divide the loss by this; one group of rows each.  [recipe's own]",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@renamed("--precision", "--format")
@renamed("--scaling", "--policy")
@shared_options
@click.pass_context
def compare_command(context: click.Context, **given: Unpack[CompareOptions]) -> None:
    """Train RECIPE in float32, in half precision without scaling, and with each scaling strategy.

    RECIPE is digits, chars, words, denoise, towers, cifar10 or fashion-mnist; `gradscale recipes`
    says what they are. Without it: handwritten digits, about 3 minutes on 2 CPU cores, no download.

    Ends with a table. Everything is written to a folder; a run that was stopped or killed goes on
    from there, bit for bit.

    \b
    Examples:
      gradscale compare
      gradscale compare chars --policy none,dynamic --loss-divisor 1,256 --seeds 1
      gradscale compare --format e5m2 --steps 200
      gradscale compare --resume runs/compare-digits-20260101-120000
    """  # noqa: D301
    if given["resume"]:
        refuse_changes_on_resume(context)
        path = given["resume"]
        comparison = begun_with(path, "comparison.json", "comparison", Comparison.from_json)
    else:
        with bad_input():
            comparison = _asked(given)
        path = new_folder(given["out"], f"compare-{comparison.recipe}")
    results = _run_all(comparison, path, given)
    _report(comparison, summaries_of(comparison, results), results, path, given)


def _asked(given: CompareOptions) -> Comparison:
    defaults = find(given["recipe"]).defaults
    chosen: dict[str, object] = dict(given)
    options = ("steps", "batch_size", "lr", "init_scale", "device", "emulate", "threads", "data")
    return Comparison(
        recipe=given["recipe"],
        format=given["format"],
        policies=given["policy"] or COMPARED,
        loss_divisors=given["loss_divisor"] or defaults.compare_divisors,
        seeds=given["seeds"],
        options={name: chosen[name] for name in options if chosen[name] is not None},
    )


def _run_all(comparison: Comparison, path: Path, given: CompareOptions) -> Results:
    planned = list(comparison.runs())
    with bad_input():
        # Without a lock: a finished comparison may lie where nothing can be written.
        results = _finished(planned, path)
        if results is not None:
            return results
        data = load_data(planned[0].settings)
        make_folder(path)
    resume = f"gradscale compare --resume {path}"
    errors = console(stderr=True, no_color=given["no_color"])
    with training_in(path, resume, errors) as stop, only_writer(path):
        write_json(path / "comparison.json", comparison.to_json())
        return _train(planned, data, path, given, stop, errors)


def _finished(planned: Sequence[Planned], path: Path) -> Results | None:
    """All results, if they are all there: then nothing is written, and no data is needed."""
    if not all((path / one.folder / "result.json").exists() for one in planned):
        return None
    folders = {one.folder: RunFolder(path / one.folder, within=path) for one in planned}
    return {place: it.result for place, it in folders.items() if it.result is not None}


def _train(
    planned: Sequence[Planned],
    data: Data,
    path: Path,
    given: CompareOptions,
    stop: StopRequest,
    errors: Console,
) -> Results:
    results: Results = {}
    # One display for all runs, so that it tells when the whole comparison ends.
    with Display(errors, sum(one.settings.steps for one in planned)) as display:
        for one in planned:
            settings = one.settings
            label = f"{one.row.label}, loss/{settings.loss_divisor:g}, seed {settings.seed}"
            results[one.folder] = run(
                settings,
                data,
                RunFolder(path / one.folder, within=path),
                on_step=display.begin(label, settings.steps),
                on_resume=display.skip,
                stop=stop,
                save_every=given["save_every"],
                record=given["record"],
            )
            display.finish(label, find(settings.recipe).metric_name, results[one.folder])
    return results


def _report(
    comparison: Comparison,
    summaries: list[Summary],
    results: Results,
    path: Path,
    given: CompareOptions,
) -> None:
    rows = [summary.to_json() for summary in summaries]
    summary = json_value({"comparison": comparison.to_json(), "rows": rows})
    with bad_input((OSError,)):
        write_json(path / "summary.json", summary)
    if given["as_json"]:
        click.echo(json.dumps(summary, indent=2))
        return
    emulated = any(result["emulated"] for result in results.values())
    recipe = find(comparison.recipe)
    screen = console(no_color=given["no_color"])
    say(screen, f"\n{recipe.data}; {recipe.network}, {recipe.parameters():,} parameters")
    screen.print(comparison_table(comparison, summaries, recipe, screen.width))
    say(screen, caption(comparison, summaries, emulated=emulated), style="dim")
    screen.print(f"\nWritten to {path}", soft_wrap=True)
