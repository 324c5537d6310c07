"""The entry point of the `gradscale` command."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command line, or say what is missing for it."""
    # Looked for, not imported: whoever installed the library alone is told in words.
    missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"gradscale: the command line needs {' and '.join(missing)}. "
            'Install it with:\n\n    pip install "gradscale[cli,recipes,report]"',
            file=sys.stderr,
        )
        raise SystemExit(2)
    from gradscale.cli.group import gradscale

    gradscale(prog_name="gradscale")


if __name__ == "__main__":
    main()
