"""Makes torch prepare what it compiles for a plan, while somebody wants it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import fx

from gradscale.compiled.autograd_names import traced_names
from gradscale.compiled.factors import factors_of, multiply_crossings
from gradscale.compiled.part import Closed, CompiledPart
from gradscale.compiled.reading import read_part, tensors_before
from gradscale.compiled.running import boxed, following_plans
from gradscale.compiled.shared_views import unshare_views
from gradscale.compiled.watched_form import Compiler, WatchedForm

PART = "gradscale.part"
Divided = tuple[fx.GraphModule, fx.GraphModule]
Partition = Callable[..., Divided]
_WISHES: weakref.WeakSet[object] = weakref.WeakSet()
_installed = False


def prepare_compiled(wisher: object) -> None:
    """From now on, what `torch.compile` compiles can follow a plan, as long as `wisher` lives.

    Wraps the one class through which every AOT Autograd backend goes, inductor among them. Graphs
    that were compiled before stay as they are.
    """
    global _installed
    _WISHES.add(wisher)
    if not _installed:
        _installed = True
        _wrap_aot_autograd()


def _wrap_aot_autograd() -> None:
    from torch._dynamo.backends.common import AotAutograd

    original = AotAutograd.__call__

    @functools.wraps(original)
    def call(
        self: AotAutograd, gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any
    ) -> Callable[..., Any]:
        if not _WISHES:
            return original(self, gm, example_inputs, **kwargs)
        given = self.kwargs
        self.kwargs = {
            **given,
            "partition_fn": _partitioning(given.get("partition_fn")),
            "bw_compiler": _compiling(given.get("bw_compiler") or given["fw_compiler"]),
        }
        try:
            with _without_autograd_cache():
                return original(self, gm, example_inputs, **kwargs)
        finally:
            self.kwargs = given

    AotAutograd.__call__ = call


def _without_autograd_cache() -> AbstractContextManager[object]:
    """Inductor's own caches stay on.

    This one stores what the compiler made of both passes, and nothing of what is put around it
    here: no names from the joint graph, no second form. What it hands back has not gone through
    here, and with a key of its own it would have nothing to hand back that a plan can follow.
    """
    import torch._functorch.config as config

    names = ("enable_autograd_cache", "enable_remote_autograd_cache")
    off: dict[str, Any] = {name: False for name in names if hasattr(config, name)}
    return config.patch(**off) if off else nullcontext()


def _partitioning(partition: Partition | None) -> Partition:
    def divide(joint: fx.GraphModule, *args: object, **kwargs: object) -> Divided:
        from functorch.compile import default_partition

        names, arguments = traced_names(joint.graph), tensors_before(joint.graph)
        forward, backward = (partition or default_partition)(joint, *args, **kwargs)
        unshare_views(backward.graph)
        backward.recompile()
        backward.meta[PART] = _read(backward, forward, names, arguments)
        return forward, backward

    return divide


def _read(
    backward: fx.GraphModule,
    forward: fx.GraphModule,
    names: Mapping[int, str],
    arguments: list[int],
) -> CompiledPart | Closed:
    try:
        return read_part(backward.graph, forward.graph, names, arguments)
    except Exception as error:  # whatever it was: without a plan the graph is still right
        why = f"reading it failed, {type(error).__name__}: {error}"
        return Closed(why.replace("{", "{{").replace("}", "}}"))


def _compiling(compiler: Compiler) -> Compiler:
    def compile_backward(
        module: fx.GraphModule, inputs: list[object]
    ) -> Callable[..., Sequence[object]]:
        part = module.meta.get(PART)
        if not isinstance(part, CompiledPart) or not part.crossings:
            return compiler(module, inputs)
        watched = WatchedForm(module, part, compiler, inputs)
        multiply_crossings(module.graph, part)
        module.recompile()
        plain = compiler(module, [*inputs, factors_of(module.graph)])
        return following_plans(part, boxed(plain), watched)

    return compile_backward
