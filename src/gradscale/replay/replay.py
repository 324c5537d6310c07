"""What another policy would have done on a recorded run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor

from gradscale.histogram import EXPONENT_BINS, MIN_OCTAVE
from gradscale.policies import Dynamic, Observation, Policy, advance
from gradscale.policies.dynamic import DynamicState
from gradscale.policies.policy import PolicyState
from gradscale.recording import Recording, Step
from gradscale.recording.schema import Octaves
from gradscale.replay.lost_shares import LostShares
from gradscale.replay.peaks import Peaks, shown_amax
from gradscale.replay.policy_text import policy_of
from gradscale.replay.result import Basis, Replay, ReplayedStep
from gradscale.scaler.state import fill_state_


def replay(
    recording: Recording,
    policy: Policy | None = None,
    *,
    on_step: Callable[[int], object] = lambda steps: None,
) -> Replay:
    """What `policy` would have done on a recorded run: scales, skipped steps, lost share.

    Step by step the policy is shown what it would have seen at its own scale:

        its scale is the recorded one:   what was recorded
        bad data was recorded:           bad data, at any scale
        no overflow, its scale is lower: no overflow
        overflow, its scale is higher:   an overflow
        else:                            predicted from the magnitudes that were recorded

    Args:
        recording: from `gradscale.recording.read`.
        policy: which; None for the one that recorded, which gives back the recorded run exactly.
        on_step: called with the number of steps done, now and then.

    Raises:
        TypeError: if it is no recording, such as the path of one.
        ValueError: if the recording has no steps or no scaler, or lacks what the policy needs; the
            message says how to record it.

    Example:
        >>> import gradscale, tempfile
        >>> parameter = torch.nn.Parameter(torch.ones(()))
        >>> optimizer = torch.optim.SGD([parameter], lr=0.0)
        >>> scaler = gradscale.GradScaler("cpu", init_scale=2.0)
        >>> folder = tempfile.mkdtemp()
        >>> with gradscale.Recorder(folder, scaler, amax=True):
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         scaler.scale(parameter * 1.0).backward()
        ...         scaler.step(optimizer)
        ...         scaler.update()
        >>> found = replay(gradscale.recording.read(folder), gradscale.Static(2.0**17))
        >>> found.skipped, found.steps[0].certain, found.first("counterfactual")
        (3, False, 0)
    """
    if not isinstance(recording, Recording):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"`replay({recording!r})` must be given a recording. Pass "
            "`gradscale.recording.read(path)`."
        )
    description = recording.header.policy
    own = None if description is None else policy_of(description)
    if policy is None:
        if own is None:
            raise ValueError(
                f"`{recording.path}` does not say which policy recorded it. Name one, such as "
                "`--policy dynamic`."
            )
        policy = own
    if not recording.steps:
        raise ValueError(f"`{recording.path}` has no steps to replay.")
    steps: list[ReplayedStep] = []
    run = _Run(recording, policy, own)
    for index, step in enumerate(run.steps()):
        steps.append(step)
        if index % 1000 == 999:  # a bar takes longer to redraw than many steps
            on_step(index + 1)
    return Replay(policy, tuple(steps), tuple(run.moved))


class _Carried:
    """A policy and its state, moved on as a scaler does it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state: PolicyState = policy.init()

    @property
    def scale(self) -> float:
        return float(self.state.scale)

    def move_to(self, scale: float) -> None:
        self.state.scale.fill_(scale)

    def advance(self, observation: Observation) -> None:
        # In place and by torch's kernel, as a scaler does it.
        if isinstance(self.policy, Dynamic):
            self.policy.update_(cast(DynamicState, self.state), observation)
        else:
            self.state = advance(self.policy, self.state, observation)


class _Run:
    """One policy led along a recording, and the one that recorded beside it.

    The recording policy is led along so that a scale that did not come from it is noticed.
    """

    def __init__(self, recording: Recording, policy: Policy, own: Policy | None) -> None:
        self._recording = recording
        self._same = policy == own
        self._other = _Carried(policy)
        self._own = None if own is None else _Carried(own)
        if recording.header.state is not None:
            for carried in (self._own, self._other if self._same else None):
                if carried is not None:
                    fill_state_(carried.state, recording.header.state)
        self._peaks = Peaks(recording)
        self._lost = LostShares(recording)
        self._amax = shown_amax(recording.steps)
        self._basis: Basis = "exact"
        self.moved: list[int] = []

    def steps(self) -> Iterator[ReplayedStep]:
        _check_needs(self._recording, self._other.policy)
        for index, step in enumerate(self._recording.steps):
            self._follow(step)
            yield self._step(index, step)

    def _follow(self, step: Step) -> None:
        """Takes over a scale that somebody else than the policy had set."""
        own = self._own
        if own is None or own.scale == step.scale:
            return
        self.moved.append(step.step)
        # Both: from here on they start from the scale that was really there.
        own.move_to(step.scale)
        self._other.move_to(step.scale)

    def _step(self, index: int, step: Step) -> ReplayedStep:
        scale = self._other.scale
        if scale != step.scale and self._basis == "exact":
            self._basis = "same steps"
        skipped, overflow, certain = self._fate(index, step, scale)
        if skipped != step.skipped:  # and for good: other weights lead to other gradients
            self._basis = "counterfactual"
        lost = None if skipped else self._lost.at(step, scale)
        replayed = ReplayedStep(step.step, scale, skipped, overflow, certain, self._basis, lost)
        amax = step.amax if self._same else self._amax[index]
        # `update(new_scale)` asks no policy.
        if not step.asked:
            return replayed
        if overflow or not skipped:  # bad data is never shown to a policy
            self._other.advance(_observation(overflow, amax, step))
        if self._own is not None and (step.overflow or not step.skipped):
            self._own.advance(_observation(step.overflow, step.amax, step))
        return replayed

    def _fate(self, index: int, step: Step, scale: float) -> tuple[bool, bool, bool]:
        """Whether the step is skipped, whether for an overflow, and whether that is certain."""
        if self._same and scale == step.scale:
            return step.skipped, step.overflow, True
        bad_data = step.skipped and (step.reason or "overflow") != "overflow"
        if step.dropped and not step.skipped:
            return self._fate_without_some(index, step, scale)
        if bad_data or scale == step.scale:
            return step.skipped, step.overflow and not bad_data, True
        if not step.skipped and scale < step.scale:
            return False, False, True
        if step.skipped and scale > step.scale:
            return True, True, True
        limit = self._peaks.limit(index)
        if limit is None:
            raise ValueError(_nothing_tells(self._recording, step, scale))
        overflows = scale >= limit
        return overflows, overflows, False

    def _fate_without_some(self, index: int, step: Step, scale: float) -> tuple[bool, bool, bool]:
        """That of a step that was taken without some micro-batches.

        It is taken to be taken at any scale; whether one overflows decides what the policy is told.
        """
        if scale == step.scale or (step.overflow and scale > step.scale):
            return False, step.overflow, scale == step.scale
        limit = self._peaks.limit(index)
        return False, limit is not None and scale >= limit, False


def _observation(overflow: bool, amax: float | None, step: Step) -> Observation:
    return Observation(
        torch.tensor(float(overflow)),
        None if amax is None else torch.tensor(amax, dtype=torch.float32),
        None if step.exponents is None else _all_bins(step.exponents),
    )


def _all_bins(octaves: Octaves) -> Tensor:
    """A histogram as a policy is shown it; recorded, it begins and ends with what is not zero."""
    bins = torch.zeros(EXPONENT_BINS, dtype=torch.int64)
    first = octaves.lowest - MIN_OCTAVE
    bins[first : first + len(octaves.counts)] = torch.tensor(octaves.counts, dtype=torch.int64)
    return bins


def _check_needs(recording: Recording, policy: Policy) -> None:
    shown = [step for step in recording.steps if step.overflow or not step.skipped]
    for need in sorted(policy.needs):
        lacking = next((step.step for step in shown if getattr(step, need) is None), None)
        if lacking is not None:
            raise ValueError(
                f"`{type(policy).__name__}` needs `{need}` at every step, and step {lacking} of "
                f"`{recording.path}` has none. Record with `Recorder(path, scaler, {need}=True)` "
                "or `gradscale train --record`, or replay a policy that needs nothing, such as "
                "`dynamic`."
            )


def _nothing_tells(recording: Recording, step: Step, scale: float) -> str:
    return (
        f"step {step.step} of `{recording.path}` was taken at the scale {step.scale:g}, and the "
        f"policy would have taken it at {scale:g}: nothing in the recording tells what overflows "
        "there. Record with a watch, or with `Recorder(path, scaler, amax=True)`."
    )
