"""What is known of the functions that users wrote, and what is done about those not linear."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gradscale.backward.graph import BackwardGraph, Walk, walk
from gradscale.backward.injection import owed, scale_injected
from gradscale.backward.linearity import Linearity, Probing
from gradscale.backward.loss_entry import LossEntry, transformed
from gradscale.backward.user_functions import function_name
from gradscale.capturing import capturing
from gradscale.layerwise.naming import Naming
from gradscale.torch_types import StateDict

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Injected = Literal["warn", "scale", "ignore"]


class FunctionVerdicts:
    """Probes users' backward functions, names those that inject, scales what they inject.

        first step, and every measuring step:  call them with zeros and multiples (`linearity`)
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
        self._names: dict[tuple[str, int], str] = {}
        self._probings: list[Probing] = []
        self._functions: dict[tuple[str, int], object] = {}
        self._named: set[str] = set()
        self._looking = injected != "ignore"
        self._scale: Tensor | None = None
        self._entry = LossEntry(self._begin_pass) if injected == "scale" else None

    @property
    def wanted(self) -> bool:
        """Whether a scaler without plans has to `attach` its losses, or results are under way."""
        return self._looking or self._entry is not None or bool(self._probings)

    def attach(self, loss: Tensor, scale: Tensor) -> Tensor:
        """The same loss of a scaler without plans; looked through at the first step."""
        if self._entry is not None:
            self._scale = scale
            return self._entry.watch(loss)
        self.poll(scale)
        if self._looking and loss.requires_grad and not capturing() and not transformed():
            self._probe(walk(loss))
        return loss

    def _begin_pass(self, walked: Walk) -> None:
        if self._scale is not None:
            self.begin_pass(walked, self._scale, probes=self._looking and not capturing())

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
            self._probe(walked)
        if self.injected == "scale":
            found = self._found.setdefault(walked.graph.signature, {})
            nodes = [n for n in sorted(walked.graph.unproven) if _may_inject(found.get(n))]

            def refused(node: int, why: str) -> None:
                found[node] = Linearity("unknown", why=why)

            remove = scale_injected(walked, nodes, scale, refused)
            torch.autograd.Variable._execution_engine.queue_callback(remove)

    def _probe(self, walked: Walk) -> None:
        graph = walked.graph
        for node in graph.unproven:
            key = graph.signature, node
            self._names[key] = function_name(walked.nodes[node])
            self._functions[key] = getattr(walked.nodes[node], "_forward_cls", None)
        if graph.unproven:
            self._probings.append(Probing(walked, graph.unproven))

    def proven(self, signature: str) -> frozenset[int]:
        """The nodes of a structure that were linear when last probed."""
        found = self._found.get(signature, {})
        return frozenset(node for node, verdict in found.items() if verdict.kind == "linear")

    def reduce(self, groups: Sequence[ProcessGroup], device: torch.device) -> None:
        """Merges what all ranks saw in this step. A collective."""
        for probing in self._probings:
            probing.reduce(groups, device)

    def end_step(self, scale: Tensor) -> None:
        """The results start on their way to the host; the first step is over."""
        self._looking = False
        for probing in self._probings:
            probing.fetch()
        self.poll(scale)

    def poll(self, scale: Tensor, *, wait: bool = False) -> None:
        """Takes note of what has arrived; warns of what injects."""
        if not self._probings or not (wait or all(p.arrived for p in self._probings)):
            return
        probings, self._probings = self._probings, []
        for probing in probings:
            known = self._found.setdefault(probing.graph.signature, {})
            for node, verdict in probing.result().items():
                # What a pass full of infinities or zeros could not tell stays as it was.
                if verdict.kind != "unknown" or node not in known:
                    known[node] = verdict
                if verdict.kind == "injects" and self.injected == "warn":
                    self._warn(probing.graph, node, verdict, scale)

    def _warn(self, graph: BackwardGraph, node: int, verdict: Linearity, scale: Tensor) -> None:
        key = graph.signature, node
        factor = float(owed(self._functions.get(key), scale))
        name = self._names[key]
        if factor == 1 or name in self._named:
            return
        self._named.add(name)
        wrong = f"{factor:,g} times too small" if factor > 1 else f"{1 / factor:,g} times too large"
        where = self.naming.place(graph, node)
        warnings.warn(
            f"`{name}.backward`{where} returns a gradient of its own, which reaches "
            f"{self._reached(graph, node, verdict)}. It did not come from the scaled loss, so that "
            f"after unscaling it is {wrong}. To have it multiplied by the scale, build the scaler "
            "with `injected='scale'`; if the function does that itself, with `injected='ignore'`.",
            stacklevel=2,
        )

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

    def report(self) -> list[str]:
        """A line for each function that stays at the loss scale, and why."""
        lines = [
            f"{self._names[signature, node]} stays at the loss scale: {self._reason(verdict)}"
            for signature, found in self._found.items()
            for node, verdict in found.items()
            if verdict.kind != "linear"
        ]
        return list(dict.fromkeys(lines))

    def _reason(self, verdict: Linearity) -> str:
        if verdict.kind == "nonlinear":
            return "it is not linear in its gradient"
        if verdict.kind == "unknown":
            return f"it could not be probed, because {verdict.why}"
        done = ", which is multiplied by the scale" if self.injected == "scale" else ""
        return f"it returns a gradient of its own{done}"

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
