"""The watched form of a compiled backward pass, made when it is first wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx
from torch._guards import CompileContext, TracingContext, compile_context, tracing
from torch.fx.graph import _BoxedCodeGen

from gradscale.compiled.factors import factors_of
from gradscale.compiled.linearity import operator_name
from gradscale.compiled.part import CompiledPart
from gradscale.compiled.running import Boxed, boxed
from gradscale.compiled.visits import with_visits

Compiler = Callable[[fx.GraphModule, list[object]], Callable[..., Sequence[object]]]
"""What a backend does with one traced pass and the inputs that stand for its own."""


class WatchedForm:
    """Gives the form that shows what passes each inner node.

    torch runs it operator by operator, as in the eager run, so that what is counted is what the
    eager run would count and nothing is compiled a second time. Only what torch cannot run alike,
    such as the random numbers of inductor's own kernels, is compiled as the plain form was.

    Args:
        module: the traced backward pass, as it was handed to `compiler`; copied.
        part: of this pass.
        compiler: what compiled it.
        inputs: what it was compiled for.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        part: CompiledPart,
        compiler: Compiler,
        inputs: list[object],
    ) -> None:
        graph = fx.Graph()
        graph.output(graph.graph_copy(module.graph, {}))
        self._module = fx.GraphModule(module, graph)
        self._part = part
        self._compiler = compiler
        self._inputs = list(inputs)
        self._contexts = TracingContext.try_get(), CompileContext.try_get()
        self._made: Boxed | None = None

    def __call__(self) -> Boxed:
        """The form, compiled if need be."""
        if self._made is None:
            module = with_visits(self._module, self._part)
            runs_alike = all(map(_runs_alike, module.graph.nodes))
            run = _interpreted(module) if runs_alike else self._compiled(module)
            self._made = _without_visits(run, len(self._outputs))
        return self._made

    @property
    def _outputs(self) -> tuple[object, ...]:
        output = next(node for node in reversed(self._module.graph.nodes) if node.op == "output")
        return tuple(output.args[0])

    def _compiled(self, module: fx.GraphModule) -> Boxed:
        traced, compiling = self._contexts
        inputs = [*self._inputs, factors_of(module.graph)]
        with tracing(traced), compile_context(compiling), torch._C._DisableAutocast():
            return boxed(self._compiler(module, inputs))


def _runs_alike(node: fx.Node) -> bool:
    """Whether torch computes the same here as the compiler does, within rounding."""
    if node.op != "call_function":
        return True
    own = isinstance(node.target, torch._ops.HigherOrderOperator)
    return not own and not operator_name(node).startswith("inductor_")


def _interpreted(module: fx.GraphModule) -> Boxed:
    """The graph as Python code, which lets go of its arguments as it goes.

    What inductor's forward pass has saved may lie in memory otherwise than it was traced: a view of
    it may need a copy.
    """
    aten = torch.ops.aten
    for node in module.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    module.graph.set_codegen(_BoxedCodeGen())
    module.recompile()
    return module


def _without_visits(run: Boxed, outputs: int) -> Boxed:
    def first(arguments: list[object]) -> Sequence[object]:
        return run(arguments)[:outputs]

    return first
