"""Nothing in a pickle runs, whatever it tries; what is plain data in it is read exactly."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.doctor import examine
from gradscale.doctor.inert.child import answer_to
from gradscale.doctor.inert.containers import read_container
from gradscale.doctor.inert.flat import flatten
from gradscale.doctor.inert.numbers_in_bytes import Storage, tensor
from gradscale.doctor.inert.reading import read_file
from gradscale.doctor.inert.tree import rebuild
from gradscale.doctor.inert.unpickling import InertUnpickler

STATE = torch.amp.GradScaler("cpu").state_dict()


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """Makes pickle take it for a function."""


def unpickled(pickled: bytes) -> Any:
    return InertUnpickler(io.BytesIO(pickled)).load()


def answered(pickled: bytes, *, bounded: bool = True) -> Any:
    """What the child process writes for a file, in this process."""
    return json.loads(answer_to(io.BytesIO(pickled), 384, bounded=bounded))


def raw(*opcodes: bytes) -> bytes:
    return b"\x80\x04" + b"".join(opcodes) + b"."


def attacks(mark: Path) -> dict[str, bytes]:
    command = f"touch {mark}"
    quoted = command.encode()
    text = b"X" + struct.pack("<I", len(quoted)) + quoted
    return {
        "os.system": pickle.dumps({"scaler": STATE, "x": Calls(os.system, command)}),
        "exec": pickle.dumps(Calls(exec, f"import pathlib; pathlib.Path({str(mark)!r}).touch()")),
        "subprocess": pickle.dumps([Calls(subprocess.call, ["touch", str(mark)])]),
        "getattr": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
        "nested": pickle.dumps(Calls(Calls(getattr, Calls(__import__, "os"), "system"), command)),
        "inst": b"(S'" + quoted + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text + b"o.",
        "stack global": raw(b"\x8c\x02os\x8c\x06system\x93", text, b"\x85R"),
        "new": raw(b"cos\nsystem\n", text, b"\x85\x81"),
        "new with keywords": raw(b"cos\nsystem\n", text, b"\x85}\x92"),
        "build on a class": raw(b"cos\nenviron\n}", text, text, b"sb"),
        "append to a module": raw(b"csys\npath\n", text, b"a"),
        "set in a module": raw(b"cos\nenviron\n", text, text, b"s"),
        "extension": raw(b"\x82\x01", text, b"\x85R"),
        "persistent": raw(text, b"Q"),
        "codec": raw(b"c_codecs\nencode\n", text, b"X\x04\x00\x00\x00rot1\x86R"),
        "rebuild from type": pickle.dumps(
            Calls(torch._tensor._rebuild_from_type_v2, os.system, int, (command,), {})
        ),
        "torch loads from bytes": pickle.dumps(
            Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, command)))
        ),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
@pytest.mark.parametrize("form", ["pickle", "archive", "older"])
def test_no_call_of_a_pickle_happens(name: str, form: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "evil.pt"
    pickled = attacks(mark)[name]
    if form == "archive":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")
    else:
        head = b"" if form == "pickle" else older_head()
        file.write_bytes(head + pickled + (pickle.dumps([]) if head else b""))
    before = dict(os.environ), list(sys.path)
    try:
        read_file(file)
    except ValueError:
        pass
    assert not mark.exists()
    assert (dict(os.environ), list(sys.path)) == before


def older_head() -> bytes:
    magic = torch.serialization.MAGIC_NUMBER
    return b"".join(pickle.dumps(x, 2) for x in (magic, 1001, {"little_endian": True}))


@pytest.mark.parametrize("name", ["os.system", "exec", "inst"])
def test_pythons_own_unpickler_would_have_run_them(name: str, tmp_path: Path) -> None:
    pickle.loads(attacks(tmp_path / "mark")[name])
    assert (tmp_path / "mark").exists()


def test_a_scaler_beside_an_attack_is_still_examined(tmp_path: Path) -> None:
    file = tmp_path / "evil.pt"
    file.write_bytes(attacks(tmp_path / "mark")["os.system"])
    assert examine(file).patients[0].scale == 65536.0
    assert not (tmp_path / "mark").exists()


def test_a_class_that_acts_when_its_state_is_set_does_not() -> None:
    class Acts:
        def __setstate__(self, state: Any) -> None:
            raise AssertionError("it ran")

    module = types.ModuleType("acting")
    module.Acts = Acts  # pyright: ignore[reportAttributeAccessIssue]
    Acts.__module__, Acts.__qualname__ = "acting", "Acts"
    sys.modules["acting"] = module
    try:
        thing = Acts()
        thing.value = 3  # pyright: ignore[reportAttributeAccessIssue]
        read = unpickled(pickle.dumps(thing))
    finally:
        del sys.modules["acting"]
    assert read.kind == "acting.Acts"
    assert read.attributes == {"value": 3}


@pytest.mark.parametrize(
    "pickled",
    [
        raw(b"Nr\xff\xff\xff\x7f"),  # a memo of two billion entries
        raw(b"\x8e" + struct.pack("<Q", 2**62)),  # a string longer than any file
        raw(b"\x96" + struct.pack("<Q", 2**62)),
        raw(b"\x8b" + struct.pack("<i", 2**31 - 1)),
        raw(b")" + b"\x85" * 200_000 + b"N" + b"d"),
        raw(b"(" + b")" + b"\x85" * 200_000 + b"Nd"),  # hashing it would overflow the C stack
        raw(b"R"),
        raw(b"0" * 9),
        raw(b"((("),
        raw(b"h\x07"),
        b"\x80\x04",
        b"",
    ],
)
def test_a_pickle_that_is_too_large_or_torn_is_refused(pickled: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickled)
    with pytest.raises(ValueError, match=r"^it |^reading it takes more than 384 MB"):
        read_file(tmp_path / "x.pkl")


def test_a_list_that_is_nested_deeper_than_python_goes_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(raw(b"]" * 50_000 + b"a" * 49_999))
    read, depth = read_file(tmp_path / "x.pkl"), 0
    while read:
        (read,), depth = read, depth + 1
    assert depth == 49_999


def test_a_pickle_that_shares_its_way_to_a_billion_values_is_read_at_once(tmp_path: Path) -> None:
    bomb: list[Any] = [STATE]
    for _ in range(60):
        bomb = [bomb, bomb]
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(bomb))
    assert len(examine(tmp_path / "bomb.pkl").patients) == 1


def test_a_list_within_itself_is_examined(tmp_path: Path) -> None:
    loop: list[Any] = [STATE]
    loop.append(loop)
    (tmp_path / "loop.pkl").write_bytes(pickle.dumps(loop))
    assert len(examine(tmp_path / "loop.pkl").patients) == 1


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    assert isinstance(answered(data, bounded=False), str | list)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_checkpoint_with_broken_bytes_is_read_or_refused(data: st.DataObject) -> None:
    pickled = bytearray(pickle.dumps({"scaler": STATE, "x": np.float32(2), "y": torch.ones(2)}))
    for _ in range(data.draw(st.integers(1, 5))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(answered(bytes(pickled), bounded=False), str | list)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN, st.integers(0, 5))
@settings(deadline=None)
def test_plain_data_is_what_python_reads(value: Any, protocol: int) -> None:
    assert read_container(io.BytesIO(pickle.dumps(value, protocol))) == value


PLAINER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(PLAINER)
@settings(deadline=None)
def test_what_the_other_process_writes_is_what_it_read(value: Any) -> None:
    assert repr(rebuild(flatten(value))) == repr(value)


DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["archive", "older", "pickle"])
def test_a_tensor_of_one_element_is_read_out_of_the_file(
    dtype: torch.dtype, form: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.pt"
    whole = torch.tensor([1, 0, 1, 1, 0, 1]).to(dtype)
    saved = {"a": whole, "last": whole[5], "row": whole.reshape(2, 3)[1, 2:]}
    if form == "pickle":
        file.write_bytes(pickle.dumps(saved))
    else:
        torch.save(saved, file, _use_new_zipfile_serialization=form == "archive")
    read = read_file(file)
    assert read["last"].item() == whole[5].item() and read["row"].item() == whole[5].item()
    assert read["a"].shape == (6,) and f"torch.{read['a'].dtype}" == str(dtype)
    with pytest.raises(ValueError, match="not one number"):
        read["a"].item()


def test_the_attributes_of_an_ordered_dictionary_do_not_matter(tmp_path: Path) -> None:
    held = torch.nn.Linear(1, 1).state_dict()
    assert vars(held)
    torch.save({"model": held, "scaler": STATE}, tmp_path / "x.pt")
    assert read_file(tmp_path / "x.pt")["model"]["bias"].shape == (1,)


def test_numpy_numbers_and_parameters_are_read(tmp_path: Path) -> None:
    saved = {
        "f": np.float32(3.5), "i": np.int64(-2), "a": np.array([7.0]), "b": np.array(5),
        "p": torch.nn.Parameter(torch.tensor(2.0)),
    }  # fmt: skip
    torch.save(saved, tmp_path / "x.pt")
    read = read_file(tmp_path / "x.pt")
    assert (read["f"], read["i"], read["a"].item(), read["b"].item()) == (3.5, -2, 7.0, 5)
    assert read["p"].item() == 2.0


def test_a_tensor_whose_bytes_are_not_there_is_refused() -> None:
    nothing = Storage("torch.FloatStorage", 1, lambda offset, size: b"")
    (read,) = rebuild(flatten([tensor((nothing, 2**60, (), ()))]))
    with pytest.raises(ValueError, match=r"float32 and shape .* is not one number"):
        read.item()


def test_tensors_stay_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": torch.zeros(4_000_000), "scaler": STATE}, tmp_path / "x.pt")
    taken: list[int] = []
    real = zipfile.ZipExtFile.read

    def counted(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        data = real(self, n)
        taken.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    assert "65536.0" in json.dumps(answered((tmp_path / "x.pt").read_bytes()))
    assert 0 < sum(taken) < 10_000
