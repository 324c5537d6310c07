"""JSON with the floats that it lacks as strings; read from regular files of sensible size only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from gradscale.files.regular import LARGEST_SIDE_FILE, read_regular
from gradscale.files.replacement import replace_file

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What JSON can say; what is read from a file consists of `list` and `dict`."""

JsonObject: TypeAlias = "dict[str, Json]"


def json_value(value: object) -> Json:
    """`value` with floats that are not finite as strings such as ``"nan"``: JSON has none.

    Example:
        >>> json_value({"loss": math.nan, "scale": 2.0})
        {'loss': 'nan', 'scale': 2.0}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return json_object(value)
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    return cast("Json", value)


def json_object(values: Mapping[Any, object]) -> JsonObject:
    """A dictionary whose values are those of `json_value`.

    Example:
        >>> json_object({"loss": math.inf, 2: (1, 2)})
        {'loss': 'inf', '2': [1, 2]}
    """
    return {str(name): json_value(part) for name, part in values.items()}


def json_line(value: object) -> bytes:
    r"""A line of JSON.

    Example:
        >>> json_line({"loss": math.nan, "ids": [1, 2]})
        b'{"loss":"nan","ids":[1,2]}\n'
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        # Only then: most lines are finite, and to walk through one takes longer than to write it.
        text = json.dumps(json_value(value), separators=(",", ":"))
    return text.encode() + b"\n"


def read_json(path: Path) -> Json:
    """The file's content; None if it is missing.

    Raises:
        ValueError: if it is not JSON, no regular file, or larger than `LARGEST_SIDE_FILE`; the
            message names the file.
    """
    try:
        text = read_regular(path, LARGEST_SIDE_FILE)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}.") from None
    except ValueError as error:
        raise ValueError(f"`{path}` cannot be read: {error}.") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}.") from None


def write_json(path: Path, value: object) -> None:
    """Replace the file by `value`, indented; one that says the same already is left alone.

    So what is finished can be looked at again in a folder that cannot be written.

    Raises:
        Unwritable: if that fails; nothing is left behind.
    """
    text = json.dumps(json_value(value), indent=2) + "\n"
    try:
        same = read_regular(path, LARGEST_SIDE_FILE) == text
    except (OSError, ValueError):
        same = False
    if not same:
        replace_file(path, text.encode())
