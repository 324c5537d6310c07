"""What is known of the functions that users wrote, and what is done about those not linear."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from gradscale.backward.graph import BackwardGraph, Walk, walk
from gradscale.backward.injection import owed, scale_injected
from gradscale.backward.linearity import Linearity, Probing
from gradscale.backward.loss_entry import LossEntry, transformed
from gradscale.backward.user_functions import function_name
from gradscale.callers import level_of_caller
from gradscale.capturing import capturing
from gradscale.layerwise.function_verdict import FunctionVerdict
from gradscale.layerwise.naming import Naming
from gradscale.torch_types import StateDict

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Injected = Literal["warn", "scale", "ignore"]

LOOKS = 8
"""Steps in which a scaler without plans may look: the first ones may show zeros or infinities."""


class _Met(NamedTuple):
    """A user's function as it was met: its name, and what its own gradient is owed, on the device.

    What Megatron's are told of the scale, and the scale itself, may be others a moment later.
    """

    name: str
    due: Tensor


class FunctionVerdicts:
    """Probes users' backward functions, names those that inject, scales what they inject.

        first steps, and every measuring step:  call them with zeros and multiples (`linearity`)
        linear                  may stand at any exponent
        returns its own         at the loss scale; named once, or multiplied by the scale
        nonlinear, not probed   at the loss scale

    Args:
        injected: ``"warn"``, ``"scale"`` or ``"ignore"``: see `GradScaler`.
        naming: of modules and parameters, for messages.

    Raises:
        ValueError: if `injected` is none of these.
    """

    def __init__(self, injected: Injected = "warn", naming: Naming | None = None) -> None:
        if injected not in ("warn", "scale", "ignore"):
            raise ValueError(
                f"`GradScaler(injected={injected!r})` must be 'warn', 'scale' or 'ignore'. To have "
                "the gradients that a function makes itself multiplied by the scale, pass 'scale'."
            )
        self.injected = injected
        self.naming = naming or Naming()
        self._found: dict[str, dict[int, Linearity]] = {}
        self._met: dict[tuple[str, int], _Met] = {}
        self._said: dict[tuple[str, int], FunctionVerdict] = {}
        self._probings: list[Probing] = []
        self._named: set[str] = set()
        self._looks = 0 if injected == "ignore" else LOOKS
        self._scale: Tensor | None = None
        begin = self._begin_pass
        self._entry = LossEntry(begin, begin) if injected == "scale" else None

    @property
    def wanted(self) -> bool:
        """Whether a scaler without plans has to `attach` its losses, or results are under way."""
        return bool(self._looks or self._entry or self._probings)

    def attach(self, loss: Tensor, scale: Tensor) -> Tensor:
        """The same loss of a scaler without plans; looked through in the first steps."""
        self.warn_of_transforms(loss)
        if self._entry is not None:
            self._scale = scale
            return self._entry.watch(loss)
        self.poll()
        if self._looks and loss.requires_grad and not capturing() and not transformed():
            self.probe(walk(loss), scale)
        return loss

    def _begin_pass(self, walked: Walk) -> None:
        if self._scale is not None:
            self.begin_pass(walked, self._scale, probes=self._looks > 0 and not capturing())

    def begin_pass(self, walked: Walk, scale: Tensor, *, probes: bool) -> None:
        """At the start of a backward pass, before it is measured and rescaled.

        Args:
            walked: the graph of the pass.
            scale: the loss scale.
            probes: whether to probe as well.
        """
        if not walked.graph.unproven:
            return
        if probes:
            self.probe(walked, scale)
        if self.injected == "scale":
            found = self._found.setdefault(walked.graph.signature, {})
            nodes = [n for n in sorted(walked.graph.unproven) if _may_inject(found.get(n))]

            def refused(node: int, name: str, why: str) -> None:
                # While its gradient is differentiated; in another pass it may do.
                passing = torch.is_grad_enabled()
                found[node] = Linearity("unknown", why=why, passing=passing)
                self._warn_of_refused(name, why)

            remove = scale_injected(walked, nodes, scale, refused)
            torch.autograd.Variable._execution_engine.queue_callback(remove)

    def probe(self, walked: Walk, scale: Tensor) -> None:
        """Has the functions of a graph called a few times more in the pass that comes.

        Args:
            walked: the graph.
            scale: the loss scale.
        """
        graph = walked.graph
        for number in graph.unproven:
            node = walked.nodes[number]
            due = owed(getattr(node, "_forward_cls", None), scale).clone()
            self._met[graph.signature, number] = _Met(function_name(node), due)
        if graph.unproven:
            self._probings.append(Probing(walked, graph.unproven))

    def knows(self, signature: str) -> bool:
        """Whether the functions of a structure have been probed, and told what they are."""
        found = self._found.get(signature, {})
        return bool(found) and not any(verdict.passing for verdict in found.values())

    def proven(self, signature: str) -> frozenset[int]:
        """The nodes of a structure that were linear when last probed."""
        found = self._found.get(signature, {})
        return frozenset(node for node, verdict in found.items() if verdict.kind == "linear")

    def reduce(self, groups: Sequence[ProcessGroup], device: torch.device) -> None:
        """Merges what all ranks saw in this step. A collective."""
        for probing in self._probings:
            probing.reduce(groups, device)

    def end_step(self) -> None:
        """The results start on their way to the host."""
        self._looks = max(0, self._looks - 1) if self._probings else 0
        self.end_pass()

    def end_pass(self) -> None:
        """The same for who looks at single passes."""
        for probing in self._probings:
            probing.fetch()
        self.poll()

    def poll(self, *, wait: bool = False) -> None:
        """Takes note of what has arrived; warns of what injects."""
        if not self._probings or not (wait or all(p.arrived for p in self._probings)):
            return
        probings, self._probings = self._probings, []
        passing = False
        for probing in probings:
            known = self._found.setdefault(probing.graph.signature, {})
            for node, verdict in probing.result().items():
                # What a pass full of infinities or zeros could not tell stays as it was.
                if verdict.kind != "unknown" or node not in known:
                    known[node] = verdict
                passing |= known[node].passing
                self._say(probing.graph, node, known[node])
        if not passing:
            self._looks = 0

    def _say(self, graph: BackwardGraph, node: int, found: Linearity) -> None:
        """Puts a verdict into words the first time, and warns of what is wrong."""
        said, met = self._said.get((graph.signature, node)), self._met[graph.signature, node]
        if said is not None and said.kind == found.kind:
            return
        place, injects = self.naming.place(graph, node), found.kind == "injects"
        verdict = self._said[graph.signature, node] = FunctionVerdict(
            met.name,
            place,
            found.kind,
            reaches=self._reached(graph, node, found) if injects else "",
            wrong=float(met.due) if injects else 1.0,
            corrected=self.injected == "scale",
            why=found.why,
        )
        if self.injected == "warn" and verdict.wrongly and met.name not in self._named:
            self._named.add(met.name)
            warnings.warn(
                f"`{met.name}.backward`{place} returns a gradient of its own, which reaches "
                f"{verdict.reaches}. It did not come from the scaled loss, so that after unscaling "
                f"it is {verdict.wrongly}. To have it multiplied by the scale, build the scaler "
                "with `injected='scale'`; if the function does that itself, with "
                "`injected='ignore'`.",
                stacklevel=level_of_caller(),
            )

    def _warn_of_refused(self, name: str, why: str) -> None:
        if name not in self._named:
            self._named.add(name)
            warnings.warn(
                f"`GradScaler(injected='scale')` cannot look at `{name}.backward`, because {why}. "
                "If it returns a gradient of its own, that stays as it is: divided by the scale. "
                "Have the function multiply it by `scaler.get_scale()` itself.",
                stacklevel=level_of_caller(),
            )

    def warn_of_transforms(self, loss: Tensor) -> None:
        """Inside `torch.func` nothing is corrected; said once of each function."""
        if self.injected == "scale" and transformed() and loss.requires_grad:
            walked = walk(loss)
            for number in walked.graph.unproven:
                name = function_name(walked.nodes[number])
                self._warn_of_refused(name, "it is differentiated by `torch.func`")

    def _reached(self, graph: BackwardGraph, node: int, verdict: Linearity) -> str:
        ahead = [
            graph.edges[edge].target
            for edge in graph.edges_from(node)
            if graph.edges[edge].output in verdict.outputs
        ]
        parameters = graph.parameters()
        for target in ahead:  # grows as it goes: the nearest leaf comes first
            if target in parameters:
                return self.naming.parameter(parameters[target])
            ahead += [graph.edges[edge].target for edge in graph.edges_from(target)]
        return "no parameter"

    def verdicts(self) -> tuple[FunctionVerdict, ...]:
        """What is known of each function, in the order in which they were met; equal ones once."""
        return tuple(dict.fromkeys(self._said.values()))

    def report(self) -> list[str]:
        """A line for each function that stays at the loss scale, and why."""
        held = (f"{v.name} stays at the loss scale: {v.held}" for v in self.verdicts() if v.held)
        return list(dict.fromkeys(held))

    def __getstate__(self) -> dict[str, object]:
        return {"injected": self.injected, "linear": self.state_dict()}

    def __setstate__(self, state: StateDict) -> None:
        self.__init__(state["injected"])
        self.load_state_dict(state["linear"])

    def state_dict(self) -> dict[str, list[int]]:
        """By signature, the nodes that were seen to be linear."""
        return {signature: sorted(self.proven(signature)) for signature in self._found}

    def load_state_dict(self, state: Mapping[str, Iterable[int]]) -> None:
        """Takes over what `state_dict` gave."""
        self._probings.clear()
        self._found = {
            signature: {int(node): Linearity("linear") for node in nodes}
            for signature, nodes in state.items()
        }


def _may_inject(verdict: Linearity | None) -> bool:
    if verdict is None or verdict.kind == "injects":
        return True
    return verdict.kind == "unknown" and verdict.passing
