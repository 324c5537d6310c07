"""The network as it is drawn: a use of a module is a node."""

from __future__ import annotations

import torch
from torch import nn

from gradscale.backward.graph import BackwardGraph
from gradscale.recording.sketch import Sketch, sketch


class Tied(nn.Module):
    """An embedding that is the output layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(self.embed(ids))))


class Repeated(nn.Module):
    """A layer that is used several times, with another one between."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.one = nn.Linear(4, 4)
        self.other = nn.ModuleList(nn.Linear(4, 4) for _ in range(times))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for other in self.other:
            x = torch.tanh(other(torch.tanh(self.one(x))))
        return x


def drawn(model: nn.Module, inputs: torch.Tensor) -> Sketch:
    return sketch(BackwardGraph.of(model(inputs).sum()), model)


def test_tied_embeddings_do_not_tie_the_ends_of_the_network_together():
    found = drawn(Tied(), torch.tensor([1, 2]))
    assert found.nodes == ("head", "body", "embed") and found.edges == ((0, 1), (1, 2))
    assert found.modules == ("embed", "body", "embed"), "measured under the name met first"
    assert found.line({"embed": [3, 4], "body": [5]})["rows"] == {"0": 3, "1": 5, "2": 3}


def test_a_layer_used_twice_is_two_nodes_and_one_used_often_is_one():
    twice = drawn(Repeated(2), torch.ones(1, 4))
    assert twice.nodes == ("other.1", "one (2)", "other.0", "one (1)")
    assert twice.edges == ((0, 1), (1, 2), (2, 3))
    often = drawn(Repeated(6), torch.ones(1, 4))
    assert often.nodes.count("one") == 1 and len(often.nodes) == 7


def test_a_recurrent_cell_is_one_node():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x
            for _ in range(5):
                h = self.cell(x, h)
            return h

    assert drawn(Loop(), torch.ones(1, 4)).nodes == ("cell",)
