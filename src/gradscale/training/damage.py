"""Files of a run that cannot be what this program wrote."""

from __future__ import annotations

import pickle
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

# What reading the wrong content raises, from a wrong key to a torn archive.
_SYMPTOMS = (
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
)


class DamagedRun(ValueError):
    """A file of a run cannot be continued from; the message names it and the way out."""


@contextmanager
def damaged(path: Path, way_out: str = "Start a new run.") -> Generator[None]:
    """Whatever goes wrong inside is the fault of the file at `path`.

    Raises:
        DamagedRun: in place of the error.
    """
    try:
        yield
    # Named already, by the file that it is really about.
    except DamagedRun:
        raise
    except _SYMPTOMS as error:
        # On one line, and no longer than a terminal: torch's reasons have many.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedRun(f"`{path}` cannot be used: {reason:.300}. {way_out}") from error
