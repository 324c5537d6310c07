"""`gradscale report`: a recorded run as a page, or several side by side."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from gradscale.cli.display import console
from gradscale.cli.errors import BadInput, bad_input
from gradscale.cli.options import NO_COLOR, one_of, several
from gradscale.cli.prose import say
from gradscale.cli.renamed import renamed
from gradscale.files.json_text import json_value
from gradscale.files.replacement import check_ours

if TYPE_CHECKING:
    from gradscale.report.run import Run

FORMATS = ("png", "svg", "pdf")


@click.command(name="report", short_help="A recorded run as an HTML page, or several side by side.")
@click.argument("runs", nargs=-1, metavar="RUN…", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page.  [report.html in the folder of the first RUN]",
)
@click.option("--title", default="Loss scaling report", show_default=True, help="Its heading.")
@click.option(
    "--figures",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also save figures for a paper into this folder.",
)
@click.option(
    "--figure-format",
    "formats",
    type=several(one_of(FORMATS)),
    default="png,svg",
    show_default=True,
    metavar="NAME,…",
    help="Of the figures: png, svg, pdf.",
)
@renamed("--format", "--figure-format")
@click.option("--force", is_flag=True, help="Replace files that gradscale did not make, and links.")
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print what the runs come down to as JSON.")
@NO_COLOR
def report_command(
    runs: tuple[Path, ...],
    out: Path | None,
    title: str,
    figures: Path | None,
    formats: tuple[str, ...],
    force: bool,
    show: bool,
    as_json: bool,
    no_color: bool,
) -> None:
    """Write one HTML file that shows what RUN lost, where and why.

    RUN is a recording, a folder with one, or a folder of such folders, as `gradscale compare`
    writes them. Several runs are shown side by side. The page opens offline and needs nothing
    beside it.

    \b
    Examples:
      gradscale report runs/mine
      gradscale report runs/mine runs/other --out both.html
      gradscale report runs/mine --figures figures --figure-format pdf
      gradscale report runs/compare-digits-20260101-120000 --json
    """  # noqa: D301
    if not runs:
        raise BadInput("which run? Pass a recording, or a folder with one.")
    errors = console(stderr=True, no_color=no_color)
    with bad_input((ValueError, OSError, ImportError)):
        page = out or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report.html"
        # Before anything is read: reading may take minutes.
        check_ours(page, force=force)
        left_out: list[str] = []
        loaded = _write(
            runs, page, errors, left_out, title=title, figures=figures, formats=formats, force=force
        )
    if as_json:
        from gradscale.report.summary import summary_of

        found = json_value([summary_of(run) for run in loaded])
        written = {"report": str(page), "runs": found, "left_out": left_out}
        click.echo(json.dumps(written, indent=2))
    else:
        _tell(loaded, page, figures, console(no_color=no_color))
    for reason in left_out:
        say(errors, f"Left out: {reason}", style="yellow")
    # Last, so that a browser that does not open costs nothing else.
    if show:
        webbrowser.open(page.resolve().as_uri())


def _write(
    paths: Sequence[Path],
    page: Path,
    errors: Console,
    left_out: list[str],
    *,
    title: str,
    figures: Path | None,
    formats: Sequence[str],
    force: bool,
) -> list[Run]:
    from gradscale.report.figures.save import save_runs
    from gradscale.report.write import load_runs, write_runs

    with errors.status("") as status:  # which writes nothing where that is no terminal
        loaded = load_runs(
            paths, on_run=lambda name: status.update(f"reading {name}"), on_damage=left_out.append
        )
        status.update("writing the page")
        write_runs(loaded, page, title, force=force)
        if figures:
            tell = status.update
            save_runs(loaded, figures, formats, lambda name: tell(f"drawing {name}"), force=force)
    return loaded


def _tell(runs: Sequence[Run], page: Path, figures: Path | None, screen: Console) -> None:
    from gradscale.report.sentences import sentences_of

    for run in runs:
        for line in sentences_of(run, named=len(runs) > 1):
            say(screen, line)
    screen.print(f"Written to {page}", soft_wrap=True)
    if figures:
        screen.print(f"Figures in {figures}", soft_wrap=True)
