"""Writes the table of host versions into index.md, from what is installed here.

python docs/integrations/versions.py          writes it
python docs/integrations/versions.py --check  says where it differs, and fails
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

PAGE = Path(__file__).with_name("index.md")
BEGIN, END = "<!-- versions: docs/integrations/versions.py -->\n", "<!-- end of versions -->\n"

HOSTS = {
    "Accelerate": ("accelerate",),
    "Transformers, TRL, sentence-transformers": ("transformers", "trl", "sentence-transformers"),
    "Lightning, Fabric": ("lightning",),
    "DeepSpeed": ("deepspeed",),
    "Megatron-core (its scaler)": ("megatron-core",),
    "Keras on torch": ("keras",),
    "Ignite": ("pytorch-ignite",),
    "MONAI": ("monai",),
    "fastai": ("fastai",),
    "skorch": ("skorch",),
    "mmengine (its wrapper)": ("mmengine",),
}
APART = {
    "timm": "timm",
    "open_clip": "open_clip_torch",
    "speechbrain": "speechbrain",
    "Ultralytics": "ultralytics",
}
"""Hosts that run from a folder of their own: see the Makefile."""


def version_apart(package: str) -> str:
    """The version of a package in that folder."""
    folder = str(Path(sys.prefix) / "apart")
    found = (it.version for it in distributions(name=package, path=[folder]))
    try:
        return next(found)
    except StopIteration:
        raise PackageNotFoundError(package) from None


def table() -> str:
    """The table, as installed here."""
    torch = version("torch").partition("+")[0]
    rows = [f"With torch {torch} on the CPU, real training runs, `make test-hosts`:", ""]
    rows += ["| host | version |", "|---|---|"]
    rows += [f"| {host} | {', '.join(map(version, of))} |" for host, of in HOSTS.items()]
    rows += [f"| {host} | {version_apart(package)} |" for host, package in APART.items()]
    return "\n".join(rows) + "\n"


def written() -> str:
    """The table on the page."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    """Writes it, or compares."""
    try:
        now = table()
    except PackageNotFoundError as error:
        print(f"not all hosts are installed here: {error}", file=sys.stderr)
        return 1
    if "--check" in sys.argv:
        differing = [row for row in now.splitlines() if row not in written().splitlines()]
        print("\n".join(differing) or "as installed")
        return int(bool(differing))
    text = PAGE.read_text()
    PAGE.write_text(text.replace(written(), now))
    return 0


if __name__ == "__main__":
    sys.exit(main())
