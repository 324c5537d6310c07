"""Times the report of a long run: writing the page, and opening it in a headless browser.

    python benchmarks/report.py [--steps 100000] [--rows 500] [--rounds 3]

The recording is made on the fly. Opening needs chromium and chromedriver; it is timed from the
address to the moment at which all parts are drawn. Prints medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Page, chromium
from gradscale.report import write_report
from report_recordings import MadeUp


def main() -> None:
    """Make the recording, then write and open its page several times."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    made = MadeUp(steps=given.steps, rows=given.rows, every=100, octaves_every=1000)
    with tempfile.TemporaryDirectory() as folder:
        recording = made.write(Path(folder) / "recording.jsonl")
        print(f"recording     {recording.stat().st_size / 1e6:6.1f} MB")
        report = Path(folder) / "report.html"
        print(
            f"write         {median(lambda: write_report(recording, report), given.rounds):6.2f} s"
        )
        print(f"page          {report.stat().st_size / 1e6:6.1f} MB")
        with chromium() as page:
            print(f"open          {median(lambda: page.open(report, 120), given.rounds):6.2f} s")
            print(f"move slider   {median(lambda: slide(page), 5):6.2f} s")


def slide(page: Page) -> None:
    """Move the slider by one octave, and wait until every number is drawn."""
    scale = page.number("#scale-value")
    page.set("#scale-slider", scale + 1)
    page.until(f"return document.getElementById('scale-value').dataset.value == {scale + 1}")


def median(work, rounds: int) -> float:
    """The median time of `work`, in seconds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
