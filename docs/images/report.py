"""Draws report.png and report-scale.png: the report of a deep network, as it looks in a browser.

Run `python docs/images/report.py` from the repository root; it needs chromium and chromedriver. The
run is real: 10 linear layers without normalization learn handwritten digits in emulated float16,
watched and recorded. The loss is divided by 2^14, as gradient accumulation or a mean over more
items do, and the gradients multiplied by it. It trains once under one loss scale and once
layer-wise.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import gradscale
from gradscale.emulation import emulate
from gradscale.recipes import find
from gradscale.recording import Recorder
from gradscale.report import write_report

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from browser import chromium

LAYERS, WIDTH, STEPS, DIVISOR = 10, 64, 300, 2**14
VIEW = 1180


def network() -> nn.Sequential:
    """Linear layers and GELU as torch initializes them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(LAYERS - 1):
        layers += [nn.Linear(64, WIDTH), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def train(folder: Path, **options: Any) -> Path:
    """One recorded run."""
    model, recipe = network(), find("digits")
    data = recipe.load(None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = gradscale.GradScaler("cpu", **options)
    watch = gradscale.watch(model, scaler, every=4)
    with watch, Recorder(folder, scaler, watch, note={"layers": LAYERS}) as recorder:
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
    return folder


def pictures(report: Path) -> dict[str, Image.Image]:
    """The sections that the page shows, as they look."""
    with chromium(VIEW, 900) as page:
        page.open(report)
        found: dict[str, Image.Image] = {}
        for name in ("verdict", "heat", "scale", "plan"):
            box = page.run(
                "const r = document.getElementById(arguments[0]).getBoundingClientRect();"
                "return [r.x - 12, r.y + scrollY - 10, r.width + 24, r.height + 16]",
                name,
            )
            clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}
            shot = page.driver.execute_cdp_cmd(
                "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
            )
            found[name] = Image.open(io.BytesIO(base64.b64decode(shot["data"])))
    return found


def save(images: list[Image.Image], path: Path) -> None:
    """Images below each other, in few enough colors for a small file."""
    width, height = max(i.width for i in images), sum(i.height for i in images)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for image in images:
        whole.paste(image.convert("RGB"), (0, top))
        top += image.height
    whole.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            train(Path(folder) / "one-scale"),
            train(Path(folder) / "layerwise", layerwise=True),
        ]
        found = pictures(write_report(runs, Path(folder) / "report.html"))
        if len(sys.argv) > 1:
            write_report(runs, sys.argv[1])
    here = Path(__file__).parent
    save([found["verdict"], found["heat"]], here / "report.png")
    save([found["scale"]], here / "report-scale.png")
