"""Messages name layers, not node numbers."""

from __future__ import annotations

import torch
from torch import nn

from gradscale.backward import BackwardGraph
from gradscale.backward.names import ModulePlace, module_places, parameter_names
from zoo import UNet


def test_every_node_of_a_unet_has_a_place_and_each_convolution_is_inside_its_own() -> None:
    model = UNet()
    graph = BackwardGraph.of(model(torch.randn(1, 2, 8, 8)).sum())
    places = module_places(graph, model)
    assert None not in places
    inside = [
        place.module
        for name, place in zip(graph.names, places, strict=True)
        if name == "ConvolutionBackward0" and place is not None and place.inside
    ]
    assert sorted(inside) == ["down", "middle", "out", "up"]
    assert places[0] == ModulePlace("out", False)
    assert str(places[0]) == "after out"


def test_casts_and_transposes_of_a_weight_are_inside() -> None:
    model = nn.Linear(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        graph = BackwardGraph.of(model(torch.ones(1, 2)).float().sum())
    places = module_places(graph, model)
    assert {str(places[i]) for i, n in enumerate(graph.names) if "ToCopy" in n} == {
        "Linear",
        "after Linear",
    }


def test_wrappers_leave_no_trace_in_a_name() -> None:
    outer = nn.Module()
    outer._orig_mod = nn.Module()
    outer._orig_mod.head = nn.Linear(2, 1)
    graph = BackwardGraph.of(outer._orig_mod.head(torch.ones(1, 2)).sum())
    assert {place.module for place in module_places(graph, outer) if place} == {"head"}


def test_what_is_parallel_leaves_no_trace_and_a_part_called_module_keeps_its_name() -> None:
    inner = nn.Module()
    inner.module = nn.Linear(2, 1)
    outer = nn.ModuleDict({"head": nn.DataParallel(inner)})
    graph = BackwardGraph.of(inner.module(torch.ones(1, 2)).sum())
    assert {place.module for place in module_places(graph, outer) if place} == {"head.module"}
    assert {found.name for found in parameter_names(outer).values()} == {
        "head.module.weight",
        "head.module.bias",
    }


def test_nodes_without_a_known_parameter_are_named_by_number() -> None:
    stranger = torch.ones(2, requires_grad=True)
    graph = BackwardGraph.of(stranger.exp().sum())
    places = module_places(graph, nn.Linear(1, 1))
    assert places == (None, None, None)


def test_parameters_have_the_names_of_the_model_without_its_wrappers() -> None:
    model = UNet()
    plain = {id(p): name for name, p in model.named_parameters()}
    outer = nn.Module()
    outer._orig_mod = model
    for whole in (model, outer):
        names = parameter_names(whole)
        assert {key: found.name for key, found in names.items()} == plain
    assert names[id(model.down.bias)].module == "down"


def test_a_shared_parameter_is_named_where_it_is_met_first() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    assert [found.name for found in parameter_names(model).values()] == ["embed.weight"]


def test_a_module_alone_is_named_by_its_class() -> None:
    model = nn.Linear(2, 1, bias=False)
    (found,) = parameter_names(model).values()
    assert found == ("weight", "Linear")
