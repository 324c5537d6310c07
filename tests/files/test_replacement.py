"""Files are replaced whole or not at all, and only if they are ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from full_disk import file_size_limit
from gradscale.files.replacement import ENDS, MARK, NotOurs, check_ours, replace_file
from gradscale.files.unwritable import Unwritable

OURS = f"<!doctype html>{MARK}".encode()


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    for content in (b"first", b"second"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["report.html"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(b"before")
    with file_size_limit(1000), pytest.raises(Unwritable) as caught:
        replace_file(path, bytes(5000))
    assert str(caught.value) == f"`{path}` cannot be written: File too large."
    assert os.listdir(tmp_path) == ["report.html"] and path.read_bytes() == b"before"


def test_a_link_is_replaced_itself(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    link = tmp_path / "checkpoint.pt"
    link.symlink_to(precious)
    replace_file(link, b"state")
    assert precious.read_text() == "mine"
    assert link.read_bytes() == b"state" and not link.is_symlink()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_whatever_is_forced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/null")
    for write in (lambda: replace_file(path, b""), lambda: check_ours(path, force=True)):
        with pytest.raises(Unwritable, match=f"cannot be written: it is a {kind}"):
            write()


def test_what_somebody_else_made_is_refused_without_force(tmp_path: Path) -> None:
    path = tmp_path / "thesis.tex"
    path.write_text("import gradscale  # and `gradscale report runs/mine`")
    with pytest.raises(NotOurs, match=r"gradscale did not make it.*`force=True` \(`--force`\)"):
        check_ours(path, force=False)
    check_ours(path, force=True)


@pytest.mark.parametrize(
    "content", [b"", OURS, OURS + bytes(3 * ENDS), bytes(3 * ENDS) + OURS], ids=len
)
def test_ours_is_told_by_its_beginning_or_its_end(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    check_ours(path, force=False)
    path.write_bytes(content)
    check_ours(path, force=False)


def test_a_link_is_not_followed_even_to_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "ours.html").write_bytes(OURS)
    link = tmp_path / "report.html"
    link.symlink_to(tmp_path / "ours.html")
    with pytest.raises(NotOurs, match=r"is a symbolic link, to .*ours.html.*is not followed"):
        check_ours(link, force=False)
    check_ours(link, force=True)


def test_a_name_of_the_longest_kind_is_written(tmp_path: Path) -> None:
    replace_file(tmp_path / ("n" * 250 + ".json"), b"{}")
    assert len(os.listdir(tmp_path)) == 1
