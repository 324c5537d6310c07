"""`Recorder`: writes a line for every step of a run, as soon as its values have arrived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.argument_checks import format_given
from gradscale.formats import FloatFormat
from gradscale.recording.arguments import check_recording, check_watch
from gradscale.recording.facts import Facts
from gradscale.recording.log import Log
from gradscale.recording.our_source import OurSource
from gradscale.recording.pending import Losses, Pending
from gradscale.recording.sketch import Sketching
from gradscale.recording.torch_source import TorchSource
from gradscale.scaler import GradScaler
from gradscale.waiting_line import WaitingLine
from gradscale.watching.rows import Row
from gradscale.watching.watch import Watch


class Recorder:
    """Appends one line of JSON a step: the scale, what became of the step, what a watch measured.

        scaler.update():   the step ends; its values start on their way to the host
        they are there:    its line is written, in order; on the CPU that is at once

    Nothing waits for the device. A killed run leaves all lines that were written. Measurements are
    thinned so that 100,000 steps stay below `size`, whatever the network.

    With several ranks, rank 0 writes; the others may run the same code.

    Args:
        path: a file, or a folder, which gets a ``recording.jsonl``.
        scaler: a `gradscale.GradScaler` or `torch.amp.GradScaler`; None for a run without one,
            which calls `step()` after every optimizer step.
        watch: from `gradscale.watch`; what it measures is recorded with its step.
        amax: whether to measure the largest gradient at every step, which replaying other policies
            needs; one more pass over the gradients. Our scaler only.
        exponents: whether to record the histogram of all gradients at every step, for `TwoSided`.
        format: what the backward pass holds gradients in; None takes the watch's, or float16.
        step: where a resumed run goes on: lines of this step and later are dropped. None begins a
            new recording.
        note: anything that JSON can hold, for you to find again.
        size: bytes after 100,000 steps.

    Raises:
        FileExistsError: if there is a recording already, and `step` is None.
        BlockingIOError: if another recorder has it open, in this process or in another.
        OSError: if it cannot be written, or is a link, a pipe or a device.
        TypeError: if `scaler` is no scaler that is known.
        ValueError: if `amax` is asked of torch's scaler, `step` is negative, the file is no
            recording, or the watch knows nothing of the scaler.

    Example:
        >>> import gradscale, tempfile
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scaler = gradscale.GradScaler("cpu")
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(folder, scaler) as recorder:
        ...     for _ in range(3):
        ...         loss = model(torch.ones(2, 4)).mean()
        ...         recorder.note_loss(loss)
        ...         scaler.scale(loss).backward()
        ...         scaler.step(optimizer)
        ...         scaler.update()
        >>> [step.scale for step in gradscale.recording.read(folder).steps]
        [65536.0, 65536.0, 65536.0]
    """

    def __init__(
        self,
        path: str | Path,
        scaler: TorchScaler | None = None,
        watch: Watch | None = None,
        *,
        amax: bool = False,
        exponents: bool = False,
        format: FloatFormat | torch.dtype | str | None = None,
        step: int | None = None,
        note: Mapping[str, object] | None = None,
        size: int = 50_000_000,
    ) -> None:
        # Before the file is touched.
        check_recording(path, amax, exponents, step, note, size)
        check_watch(watch, scaler)
        scaler = _followed(scaler)
        self._ask(scaler, amax=amax, exponents=exponents)
        self.path = Path(path)
        self._watch: Watch | None = watch
        self._sketching: Sketching | None = None
        self._losses = Losses()
        self._early: dict[int | None, Sequence[Row]] = {}
        self._pending = WaitingLine(self._write)
        self._next = step or 0
        chosen = format if format is not None else "fp16" if watch is None else watch.format
        name = format_given("Recorder", "format", chosen).name
        self._source: OurSource | TorchSource | None = None
        self._log = Log(self.path, size, step) if _writes() else None
        if self._log is None:
            return  # another rank writes; this one only measures along
        try:
            self._log.begin(scaler, name, watch and watch.every, note or {})
        except BaseException:
            self._log.close()  # or nobody could try again while the error is being looked at
            raise
        if isinstance(scaler, GradScaler):
            self._source = OurSource(scaler, self.departed, self.arrived)
        elif scaler is not None:
            self._source = TorchSource(scaler, self.departed, self.arrived)
        if watch is not None:
            watch.on_measured(self._measured)
            self._sketching = Sketching(watch.model)
            if isinstance(scaler, GradScaler) and not scaler._step.names:
                scaler.name_parameters(watch.model)

    def _ask(self, scaler: TorchScaler | None, *, amax: bool, exponents: bool) -> None:
        needs = [name for name, on in (("amax", amax), ("exponents", exponents)) if on]
        if isinstance(scaler, GradScaler):
            # On every rank: they reduce what they measure together.
            scaler.also_measure(*needs)  # pyright: ignore[reportArgumentType]
        elif needs:
            raise ValueError(
                f"`Recorder(scaler={type(scaler).__name__}, {needs[0]}=True)`: only a "
                "`gradscale.GradScaler` measures gradients as it divides them. Pass one, or leave "
                f"`{needs[0]}` out."
            )

    def note_loss(self, loss: Tensor | float) -> None:
        """Records a loss with the step under way, unscaled; several are added up.

        Call it before `scaler.update()`. Nothing waits for it.

        Raises:
            ValueError: if it has more than one element.
        """
        if self._log is not None:
            self._losses.note(loss)

    def step(self) -> None:
        """Ends a step of a run without a scaler.

        Raises:
            RuntimeError: if there is a scaler, which ends the steps.
        """
        if self._source is not None:
            raise RuntimeError(
                "`recorder.step()`: this recorder follows a scaler, and `scaler.update()` ends its "
                "steps. Leave the call out."
            )
        if self._log is not None:
            self.departed()
            self.arrived(Facts())

    def departed(self) -> None:
        """A step has ended; its source calls this."""
        watched = None
        if self._watch is not None:
            watched = self._watch.step if self._watch.measures else None
            # A skipped step is over as well, and no optimizer has told the watch so.
            self._watch.end_step()
        # On a CPU they are there as the optimizer steps, before the scaler ends the step.
        rows = self._early.pop(watched, None)
        self._early.clear()
        waits_for = None if rows is not None else watched
        self._pending.add(Pending(self._next, self._losses.depart(), waits_for, rows=rows))
        self._next += 1

    def arrived(self, facts: Facts) -> None:
        """The outcome of the oldest step without one has arrived; its source calls this."""
        # Outcomes arrive in the order of the steps.
        next(step for step in self._pending if step.facts is None).facts = facts
        self._pending.poll()

    def _measured(self, watched: int, rows: Sequence[Row]) -> None:
        waiting = [step for step in self._pending if step.watched is not None]
        if not any(step.watched == watched for step in waiting):
            self._early[watched] = rows
        for step in waiting:
            # In order: what the watch has not told of an earlier step, it never will.
            if step.watched is not None and step.watched <= watched:
                step.rows = rows if step.watched == watched else None
                step.watched = None
        self._pending.poll()

    def _write(self, step: Pending) -> None:
        if self._log is None:
            return
        self._log.write(step)
        if self._sketching is not None and self._log.draw(self._sketching.sketch):
            self._sketching = None

    def flush(self) -> None:
        """Writes what is still under way, and forces the file to the disk. Waits for the device.

        Call it before a checkpoint is saved: a run that is killed later and resumed from there then
        has every line up to it.
        """
        if self._log is not None:
            self._settle()
            self._log.force()

    def _settle(self) -> None:
        """Writes all that has ended; waits for it."""
        if self._watch is not None:
            self._watch.wait()
        if self._source is not None:
            self._source.wait()
        self._pending.poll(wait=True)

    def close(self, error: BaseException | None = None) -> None:
        """Writes what is still under way, and the last line; forces the file to the disk.

        Waits for the device. A second call does nothing.

        Args:
            error: what ended the run, if something went wrong.
        """
        if self._log is None:
            return
        self._settle()  # first, while everybody is still listened to
        if self._watch is not None:
            self._watch.off_measured(self._measured)
        if self._sketching is not None:
            self._sketching.leave()
        if self._source is not None:
            self._source.leave()
        log, self._log = self._log, None
        log.end(self._next, error)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(error)


def _followed(scaler: object) -> TorchScaler | None:
    """The scaler that ends the steps; None without one, or for one that is switched off."""
    if scaler is None:
        return None
    if not isinstance(scaler, TorchScaler):
        raise TypeError(
            f"`Recorder(scaler={type(scaler).__name__}(…))` must be a `gradscale.GradScaler` or a "
            "`torch.amp.GradScaler`. For another one leave it out, and call `recorder.step()` "
            "after every step."
        )
    # Switched off it ends no steps: the loop does, by `recorder.step()`.
    return scaler if scaler.is_enabled() else None


def _writes() -> bool:
    """Whether this process is the one that writes."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
