"""`gradscale recipes`: what can be trained, and what is missing for it."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich import box
from rich.table import Table

from gradscale.cli.display import console
from gradscale.cli.options import NO_COLOR
from gradscale.recipes import RECIPES, Recipe


@click.command(name="recipes")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Look here first.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@NO_COLOR
def recipes_command(data: Path | None, as_json: bool, no_color: bool) -> None:
    """List the built-in training tasks.

    \b
    Examples:
      gradscale recipes
      gradscale recipes --data ~/datasets
    """  # noqa: D301
    # Searched once: it goes through folders.
    missing = {name: missing_installs(recipe, data) for name, recipe in RECIPES.items()}
    if as_json:
        click.echo(json.dumps([_row(recipe, missing[name]) for name, recipe in RECIPES.items()]))
        return
    screen = console(no_color=no_color)
    screen.print(_table(missing))
    for name, lines in missing.items():
        if lines:
            screen.print(f"For {name}:")
            for line in lines:
                screen.print(f"    {line}", soft_wrap=True)


def missing_installs(recipe: Recipe, folder: Path | None) -> list[str]:
    """The install lines of what the recipe needs and cannot find, each once."""
    lines = [need.install for need in recipe.needs if need.find(folder) is None]
    return list(dict.fromkeys(lines))


def _row(recipe: Recipe, missing: list[str]) -> dict[str, object]:
    return {
        "name": recipe.name,
        "data": recipe.data,
        "network": recipe.network,
        "parameters": recipe.parameters(),
        "metric": recipe.metric_name,
        "installed": not missing,
        "install": missing,
    }


def _table(missing: dict[str, list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("recipe", "data", "network", "parameters", "ready"):
        table.add_column(name, justify="right" if name == "parameters" else "left")
    for name, recipe in RECIPES.items():
        size = f"{recipe.parameters():,}"
        ready = "no" if missing[name] else "yes"
        table.add_row(name, recipe.data, recipe.network, size, ready)
    return table
