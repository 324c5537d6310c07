"""What a recipe needs to be installed, and how to say so."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Need:
    """A package to import, or a file to find, and the command that brings it.

    Args:
        install: the command line, as the user would type it.
        module: the package's import name; empty if a file is meant.
        file: the file's name; empty if a package is meant.
        places: folders to search for `file` after those of `folders`.
    """

    install: str
    module: str = ""
    file: str = ""
    places: tuple[str, ...] = ()

    def find(self, folder: Path | None = None) -> Path | None:
        """The package's folder, or the file; None if it is missing. Nothing is imported."""
        # Looked for without importing it: `gradscale recipes` asks for all of them.
        if self.module:
            spec = importlib.util.find_spec(self.module)
            return Path(spec.origin).parent if spec is not None and spec.origin else None
        for place in (*folders(folder), *map(Path, self.places)):
            if (place / self.file).is_file():
                return place / self.file
        return None

    def require(self, recipe: str, folder: Path | None = None) -> Path:
        """What `find` finds.

        Raises:
            FileNotFoundError: if it is missing; the message has the install line.
        """
        found = self.find(folder)
        if found is not None:
            return found
        what = f"the package `{self.module}`" if self.module else f"the file `{self.file}`"
        where = ""
        if self.file:
            where = f" (looked in {', '.join(map(str, (*folders(folder), *self.places)))})"
        raise FileNotFoundError(
            f"recipe `{recipe}` needs {what}, which is missing{where}. Install it with:\n\n"
            f"    {self.install}"
        )


def folders(folder: Path | None = None) -> list[Path]:
    """Where data is looked for: `folder`, ``$GRADSCALE_DATA``, ``./data``, the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "gradscale"
    named = os.environ.get("GRADSCALE_DATA")
    # What was said before what is only usual.
    candidates = [folder, Path(named) if named else None, Path("data"), cache]
    return [candidate for candidate in candidates if candidate is not None]


SCIKIT_LEARN = Need("pip install scikit-learn", module="sklearn")
PILLOW = Need("pip install pillow", module="PIL")
