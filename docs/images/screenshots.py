"""Draws every picture of a screen: tables of the program and pages of the report.

`make screenshots`, or `python docs/images/screenshots.py [NAME … | pages]`; it needs chromium and
chromedriver. With a folder in the variable SCREENSHOTS the runs are kept, and not trained again.
Everything shown is real: the commands run, and what they print is set in a browser as a terminal
would set it, 160 columns wide in light colors and 80 in dark ones. Pages are shot in light, dark
and narrow.

The runs: 10 linear layers without normalization learn handwritten digits in emulated float16,
watched and recorded, under one loss scale and layer-wise. The loss is divided by 2^14, as gradient
accumulation or a mean over more items do. And a U-Net, layer-wise, whose network has arcs.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import gradscale
from gradscale.cli.group import gradscale as program
from gradscale.emulation import emulate
from gradscale.recipes import find
from gradscale.recording import Recorder
from gradscale.report import write_report

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from browser import Page, chromium

HERE = Path(__file__).parent

LAYERS, WIDTH, STEPS, DIVISOR = 10, 64, 300, 2**14
VIEW, NARROW = 1300, 390
MODES = {"light": (VIEW, "light"), "dark": (VIEW, "dark"), "narrow": (NARROW, "light")}
TERMINALS = {"wide": (160, "#ffffff", "#1f2328"), "narrow": (80, "#0d1117", "#e6edf3")}
COMPARED = "none,torch,static,dynamic,lognormal,layerwise"
MINE = """
import torch
from torch import nn

def model_step():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(24)]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    batches = [(torch.randn(32, 64), torch.randint(10, (32,))) for _ in range(4)]
    return model, batches, loss, adam

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3, eps=1e-15)
"""
COMMANDS = {
    "compare": f"compare digits --loss-divisor 1,65536 --policy {COMPARED} --seeds 1 --steps 60",
    "train": "train digits --steps 60 --record --out trained",
    "inspect": "inspect mine:model_step --steps 4 --out inspected",
    "report": "report one-scale layerwise --out both.html",
    "replay": "replay one-scale --policy lognormal --policy dynamic(init_scale=2^24)",
    "doctor": "doctor one-scale",
    "recipes": "recipes",
}


def network() -> nn.Sequential:
    """Linear layers and GELU as torch initializes them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(LAYERS - 1):
        layers += [nn.Linear(64, WIDTH), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def train(folder: Path, **options: Any) -> tuple[Any, Any]:
    """One recorded run; what its watch and its scaler say in the end."""
    model, recipe = network(), find("digits")
    data = recipe.load(None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = gradscale.GradScaler("cpu", **options)
    watch = gradscale.watch(model, scaler, every=4)
    with watch, Recorder(folder, scaler, watch, amax=True, note={"layers": LAYERS}) as recorder:
        for step in range(STEPS):
            inputs, labels = recipe.batch(data.train, 0, step, 32)
            optimizer.zero_grad()
            with emulate():
                with torch.autocast("cpu", torch.float16):
                    loss = nn.functional.cross_entropy(model(inputs).float(), labels)
                recorder.note_loss(loss)
                scaler.scale(loss / DIVISOR).backward()
            scaler.unscale_(optimizer)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(DIVISOR)
            scaler.step(optimizer)
            scaler.update()
    return watch.report(), scaler.layerwise and scaler.layerwise.report()


def recorded(folder: Path) -> dict[str, str]:
    """The runs, in `folder`, and what a loop prints of them; nothing where they are there."""
    if (folder / "u-net").exists():
        return {}
    watched, _ = train(folder / "one-scale")
    _, planned = train(folder / "layerwise", layerwise=True)
    said("train denoise --policy layerwise --format e5m2 --loss-divisor 65536 --steps 24 "
         "--record --out u-net")  # fmt: skip
    return {"watch": str(watched), "layerwise": str(planned)}


def said(command: str, columns: int = 160) -> str:
    """What a command prints on a screen of so many columns."""
    os.environ["COLUMNS"] = str(columns)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        program.main(command.split(), "gradscale")
    return printed.getvalue().strip("\n")


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Has commands run in a folder, which holds a module of the user's own."""
    before = Path.cwd()
    (folder / "mine.py").write_text(MINE)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def shot(page: Page, selector: str, scale: float = 1.0, margin: int = 0) -> Image.Image:
    """An element of the page, as it looks."""
    box = page.run(
        "const r = document.querySelector(arguments[0]).getBoundingClientRect(), m = arguments[1];"
        "return [Math.max(0, r.x - m), r.y + scrollY - m, r.width + 2 * m, r.height + 2 * m]",
        selector,
        margin,
    )
    clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": scale}
    taken = page.driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
    )
    return Image.open(io.BytesIO(base64.b64decode(taken["data"])))


def save(images: list[Image.Image], name: str, colors: int = 64) -> None:
    """Images below each other, in few enough colors for a small file without loss."""
    width, height = max(i.width for i in images), sum(i.height for i in images)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for image in images:
        whole.paste(image.convert("RGB"), (0, top))
        top += image.height
    path = HERE / f"{name}.webp"
    few = whole.quantize(colors, dither=Image.Dither.NONE).convert("RGB")
    few.save(path, "WEBP", lossless=True, method=6)
    print(f"{path.name:<32} {whole.width} x {whole.height}, {path.stat().st_size / 1000:.0f} kB")


def terminal(page: Page, folder: Path, name: str, command: str, texts: dict[str, str]) -> None:
    """A command and what it prints, on a wide screen and on a narrow one."""
    for width, (columns, paper, ink) in TERMINALS.items():
        text = texts[width]
        body = f"<b>$ gradscale {html.escape(command)}</b>\n\n" if command else ""
        (folder / "terminal.html").write_text(
            f"<!doctype html><html data-ready=yes><meta charset=utf-8><body style='margin:0'><pre "
            f"id=screen style='display:inline-block;margin:0;padding:14px 18px;background:{paper};"
            f"color:{ink};font:13px/1.35 DejaVu Sans Mono,monospace;min-width:{columns}ch'>"
            f"{body}{html.escape(text)}</pre></body></html>",
            encoding="utf-8",
        )
        page.open(folder / "terminal.html")
        save([shot(page, "#screen")], f"table-{name}-{width}", colors=16)


def tables(folder: Path, printed: dict[str, str], wanted: set[str]) -> None:
    """Every table that the program or a loop prints."""
    with chromium(1500, 900) as page:
        for name, command in COMMANDS.items():
            if not wanted or name in wanted:
                texts = {w: said(_into(command, w), TERMINALS[w][0]) for w in TERMINALS}
                terminal(page, folder, name, command, texts)
        for name, text in printed.items():
            if not wanted or name in wanted:
                terminal(page, folder, name, "", {"wide": text, "narrow": text})


def _into(command: str, width: str) -> str:
    """The same command, into a folder of its own."""
    name, _, out = command.partition(" --out ")
    if name.startswith(("replay", "doctor", "recipes")):
        return command
    forced = " --force" if name.startswith("report") else ""
    return f"{name} --out {width}-{out or 'compared'}{forced}"


def pages(folder: Path, wanted: set[str]) -> None:
    """Every page of the report, whole, in each mode; and the two parts that the docs show."""
    found = {
        "run": write_report(folder / "one-scale", folder / "run.html"),
        "runs": write_report([folder / "one-scale", folder / "layerwise"], folder / "runs.html"),
        "inspect": folder / "wide-inspected" / "report.html",
    }
    for mode, (width, colors) in MODES.items():
        with chromium(width, 900) as page:
            page.emulate(prefers_color_scheme=colors)
            for name, path in found.items():
                if not wanted or name in wanted:
                    page.open(path)
                    page.settle()
                    scale = 0.8 if mode == "narrow" else 0.5
                    save([shot(page, "body", scale)], f"page-{name}-{mode}", colors=96)
            if mode == "light" and not wanted:
                page.open(found["runs"])
                parts = [shot(page, f"#{name}", 0.9, 12) for name in ("verdict", "heat")]
                save(parts, "report", colors=128)
                save([shot(page, "#scale", 0.9, 12)], "report-scale", colors=128)
                page.open(write_report(folder / "u-net", folder / "unet.html"))
                save([shot(page, "#plan", 0.9, 12)], "report-plan")


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = set(sys.argv[1:])
    with tempfile.TemporaryDirectory() as made:
        place = Path(os.environ.get("SCREENSHOTS", made))
        place.mkdir(exist_ok=True)
        with inside(place):
            printed = recorded(place)
            if asked != {"pages"}:
                tables(place, printed, asked)
            pages(place, asked - {"pages"})
