"""Files opened without following a link, and without waiting for the other end of a pipe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradscale.files.json_text import json_value, read_json, write_json
from gradscale.files.regular import LARGEST_SIDE_FILE, open_to_append
from gradscale.files.unwritable import Unwritable


def test_what_is_appended_to_is_made_and_grows(tmp_path: Path) -> None:
    for _ in range(2):
        descriptor = open_to_append(tmp_path / "steps.jsonl")
        os.write(descriptor, b"line\n")
        os.close(descriptor)
    assert (tmp_path / "steps.jsonl").read_text() == "line\nline\n"


def test_a_link_is_not_appended_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "steps.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(Unwritable, match="it is a symbolic link, which is not followed"):
        open_to_append(tmp_path / "steps.jsonl")


@pytest.mark.timeout(20)
def test_a_pipe_hangs_neither_reader_nor_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "settings.json"
    os.mkfifo(pipe)
    with pytest.raises(Unwritable, match="it is a pipe"):
        open_to_append(pipe)
    with pytest.raises(
        ValueError, match=r"settings.json` cannot be read: it is no regular file, but a"
    ):
        read_json(pipe)


def test_an_endless_device_behind_a_link_is_not_read(tmp_path: Path) -> None:
    link = tmp_path / "settings.json"
    link.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="cannot be read: it is no regular file, but a"):
        read_json(link)


def test_a_file_that_is_too_large_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    with path.open("wb") as file:
        file.truncate(LARGEST_SIDE_FILE + 1)
    with pytest.raises(ValueError, match=r"json` cannot be read: it has 16,777,217 bytes"):
        read_json(path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\udc80"])
def test_what_is_no_json_is_a_message_that_names_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"settings.json` is not valid JSON"):
        read_json(path)


def test_json_that_says_the_same_already_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"loss": float("nan")})
    before = path.stat().st_ino
    write_json(path, {"loss": float("nan")})
    assert path.stat().st_ino == before and read_json(path) == {"loss": "nan"}
    write_json(path, {"loss": 1.0})
    assert path.stat().st_ino != before


def test_numbers_that_json_lacks_are_words() -> None:
    given = {1: (float("inf"), [float("-inf")]), "ok": 2.5}
    assert json_value(given) == {"1": ["inf", ["-inf"]], "ok": 2.5}
