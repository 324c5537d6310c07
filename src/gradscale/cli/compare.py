"""`gradscale compare`: one network, one data set, every scaling strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gradscale.cli.display import Display, console
from gradscale.cli.errors import BadInput, bad_input
from gradscale.cli.options import (
    make_folder,
    new_folder,
    number,
    refuse_changes_on_resume,
    scaling,
    several,
    shared_options,
)
from gradscale.cli.table import caption, comparison_table
from gradscale.recipes import RECIPES, find
from gradscale.training import (
    COMPARED,
    Comparison,
    DamagedRun,
    Interrupted,
    RunFolder,
    StopRequest,
    Summary,
    damaged,
    load_data,
    plain,
    read_json,
    run,
    stop_on_signals,
    summarize,
    write_json,
)


@click.command(short_help="Train with every scaling strategy; ends with a table.")
@click.argument("recipe", type=click.Choice(list(RECIPES)), default="digits", metavar="[RECIPE]")
@click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16", "e5m2", "e4m3"]),
    default="fp16",
    show_default=True,
    help="Of every row but float32.",
)
@click.option(
    "--scaling",
    type=several(scaling),
    metavar="NAME,…",
    help="Strategies, listed by `gradscale train --help`.  [none, all policies, torch]",
)
@click.option(
    "--loss-divisor",
    type=several(number),
    metavar="NUMBER,…",
    help="Divide the loss by this; one group of rows each.  [recipe's own]",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@shared_options
@click.pass_context
def compare(context: click.Context, **given: Any) -> None:
    """Train RECIPE in float32, in half precision without scaling, and with each scaling strategy.

    RECIPE is digits, chars, words, denoise, towers, cifar10 or fashion-mnist; `gradscale recipes`
    says what they are. Without it: handwritten digits, about 3 minutes on 2 CPU cores, no download.

    Ends with a table. Everything is written to a folder; a run that was stopped or killed goes on
    from there, bit for bit.

    \b
    Examples:
      gradscale compare
      gradscale compare chars --scaling none,dynamic --loss-divisor 1,256 --seeds 1
      gradscale compare --precision e5m2 --steps 200
      gradscale compare --resume runs/compare-digits-20260101-120000
    """  # noqa: D301
    if given["resume"]:
        refuse_changes_on_resume(context)
        path, comparison = given["resume"], _stored(given["resume"])
    else:
        with bad_input():
            comparison = _asked(given)
        path = new_folder(given["out"], f"compare-{comparison.recipe}")
    with stop_on_signals() as stop:
        results = _run_all(comparison, path, given, stop)
    _report(comparison, summarize(comparison, results), results, path, given)


def _asked(given: dict[str, Any]) -> Comparison:
    defaults = find(given["recipe"]).defaults
    options = ("steps", "batch_size", "lr", "init_scale", "device", "emulate", "threads", "data")
    return Comparison(
        recipe=given["recipe"],
        precision=given["precision"],
        scalings=given["scaling"] or COMPARED,
        loss_divisors=given["loss_divisor"] or defaults.compare_divisors,
        seeds=given["seeds"],
        options={name: given[name] for name in options if given[name] is not None},
    )


def _stored(path: Path) -> Comparison:
    with bad_input():
        stored = read_json(path / "comparison.json")
    if stored is None:
        raise BadInput(
            f"`--resume {path}`: there is no comparison in this folder (no comparison.json)."
        )
    with bad_input(), damaged(path / "comparison.json"):
        return Comparison.from_json(stored)


def _run_all(
    comparison: Comparison, path: Path, given: dict[str, Any], stop: StopRequest
) -> dict[Path, dict[str, Any]]:
    planned = list(comparison.runs())
    with bad_input():
        data = load_data(planned[0].settings)
        make_folder(path)
        write_json(path / "comparison.json", comparison.to_json())
    errors = console(stderr=True, no_color=given["no_color"])
    metric = find(comparison.recipe).metric_name
    results: dict[Path, dict[str, Any]] = {}
    with Display(errors, sum(one.settings.steps for one in planned)) as display:
        for one in planned:
            label = f"{one.row.label}, loss/{one.settings.loss_divisor:g}, seed {one.settings.seed}"
            folder = RunFolder(path / one.folder)
            on_step = display.begin(label, one.settings.steps)
            try:
                with bad_input((DamagedRun, OSError)):
                    results[one.folder] = run(
                        one.settings,
                        data,
                        folder,
                        on_step=on_step,
                        on_resume=display.skip,
                        stop=stop,
                        save_every=given["save_every"],
                        record=given["record"],
                    )
            except Interrupted:
                break
            display.finish(label, metric, results[one.folder])
    if len(results) < len(planned):
        errors.print(f"Stopped. Continue with:\n\n    gradscale compare --resume {path}\n")
        raise SystemExit(stop.exit_code)
    return results


def _report(
    comparison: Comparison,
    summaries: list[Summary],
    results: dict[Path, dict[str, Any]],
    path: Path,
    given: dict[str, Any],
) -> None:
    rows = [summary.to_json() for summary in summaries]
    summary = plain({"comparison": comparison.to_json(), "rows": rows})
    write_json(path / "summary.json", summary)
    if given["as_json"]:
        click.echo(json.dumps(summary, indent=2))
        return
    emulated = any(result["emulated"] for result in results.values())
    recipe = find(comparison.recipe)
    screen = console(no_color=given["no_color"])
    screen.print(f"\n{recipe.data}; {recipe.network}, {recipe.parameters():,} parameters")
    screen.print(comparison_table(comparison, summaries, recipe, screen.width))
    screen.print(caption(comparison, summaries, emulated=emulated), style="dim")
    screen.print(f"\nWritten to {path}")
