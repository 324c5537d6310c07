"""Names of nodes: those of the model, asked for late, keeping nothing alive."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.names import module_places
from gradscale.layerwise.naming import Naming
from gradscale.layerwise.track import Track


def named() -> tuple[nn.Module, Naming, Track]:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    naming = Naming()
    naming.know(model)
    return model, naming, Track(BackwardGraph.of(model(torch.ones(4, 2)).sum()))


def test_names_are_those_of_the_places() -> None:
    model, naming, track = named()
    names = naming.of(track)
    places = module_places(track.graph, model)
    assert names == {node: str(place) for node, place in enumerate(places) if place is not None}
    assert repr(names) == repr(dict(names))
    assert len(names) == len(list(names))


def test_whoever_keeps_names_keeps_no_model_alive() -> None:
    model, naming, track = named()
    asked, not_asked = naming.of(track), naming.of(track)
    before = dict(asked)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert before
    assert dict(asked) == before
    assert dict(not_asked) == {}


def test_the_model_of_a_graph_is_found_before_anybody_asks_for_a_node() -> None:
    model = nn.Linear(2, 1)
    naming = Naming()
    naming.of(Track(BackwardGraph.of(model(torch.ones(4, 2)).sum())))
    assert naming.parameter(model.weight) == "weight"
