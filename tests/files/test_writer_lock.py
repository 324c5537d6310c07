"""One writer, by a lock that dies with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradscale.files.regular import open_to_append
from gradscale.files.writer_lock import Locked, WriterLock

HOLD = """
import sys
from pathlib import Path
from gradscale.files.writer_lock import WriterLock
lock = WriterLock.on_folder(Path(sys.argv[1]), "taken")
print("held", flush=True)
sys.stdin.read()
"""


def on_file(path: Path) -> WriterLock:
    return WriterLock(open_to_append(path), f"`{path}` is taken.")


def test_a_second_lock_is_refused_in_the_same_process_until_the_first_is_released(tmp_path):
    first = on_file(tmp_path / "file")
    with pytest.raises(Locked, match="is taken"):
        on_file(tmp_path / "file")
    first.release()
    second = on_file(tmp_path / "file")
    first.release()  # again: nothing happens to the second
    with pytest.raises(Locked):
        on_file(tmp_path / "file")
    assert first.descriptor is None and second.descriptor is not None


def test_a_forgotten_lock_is_no_lock(tmp_path):
    lock = on_file(tmp_path / "file")
    del lock
    on_file(tmp_path / "file").release()


def test_a_killed_process_leaves_no_lock(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(Locked, match="mine"):
        WriterLock.on_folder(tmp_path, "mine")
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    WriterLock.on_folder(tmp_path, "mine").release()


def test_a_forked_child_neither_holds_nor_breaks_its_parents_lock(tmp_path):
    lock = on_file(tmp_path / "file")
    descriptor = lock.descriptor
    ready, told = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.fstat(descriptor)
            open_still = b"yes"
        except OSError:
            open_still = b"no"
        os.write(ready[1], open_still + (b" inherited" if lock.inherited else b""))
        os.read(told[0], 1)
        os._exit(0)
    assert os.read(ready[0], 100) == b"no inherited"
    with pytest.raises(Locked):
        on_file(tmp_path / "file")
    lock.release()
    on_file(tmp_path / "file").release()  # although the child is still there
    os.write(told[1], b"x")
    os.waitpid(child, 0)
    for end in (*ready, *told):
        os.close(end)
