"""Energies and forces of small clusters: forces are a gradient, their loss a gradient of it.

Clusters of the binary Lennard-Jones mixture of Kob & Andersen (1995), computed in float64. As in
real molecules an isolated atom has an energy of its own, which no force knows of.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from task import Task, Training

ATOMS, WIDTH, BASIS, BATCH = 6, 32, 12, 32
# By the kinds of both atoms; kind 0 is the larger.
DEPTH = torch.tensor([[1.0, 1.5], [1.5, 0.5]])
SIZE = torch.tensor([[1.0, 0.8], [0.8, 0.88]])
ISOLATED = torch.tensor([-3.0, -1.0])
PAIRS = torch.triu_indices(ATOMS, ATOMS, 1)


def distances(places: Tensor) -> Tensor:
    """Of all pairs of atoms of `(n, ATOMS, 3)`, shape `(n, pairs)`."""
    first, second = PAIRS
    return (places[:, first] - places[:, second]).square().sum(-1).sqrt()


def physics(places: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """The true energies `(n,)` and forces `(n, ATOMS, 3)`."""
    places = places.detach().requires_grad_()
    first, second = kinds[:, PAIRS[0]], kinds[:, PAIRS[1]]
    attraction = (SIZE[first, second] / distances(places)) ** 6
    energy = (4 * DEPTH[first, second] * (attraction.square() - attraction)).sum(1)
    (slope,) = torch.autograd.grad(energy.sum(), places)
    return (energy + ISOLATED[kinds].sum(1)).detach(), -slope


@lru_cache(maxsize=1)
def clusters(count: int = 1024) -> tuple[Tensor, ...]:
    """Places, kinds, energies, forces: an octahedron near its smallest energy, shaken."""
    g = generator(0, 0)
    corners = 0.9 * torch.cat([torch.eye(3), -torch.eye(3)])
    places = corners + 0.06 * torch.randn(count, ATOMS, 3, generator=g)
    kinds = (torch.rand(count, ATOMS, generator=g) < 0.3).long()
    return places, kinds, *physics(places, kinds)


class Potential(nn.Module):
    """Atoms that feel the distance and the kind of all others (Schütt et al. 2017, one layer)."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Embedding(2, WIDTH)
        self.radial = nn.Sequential(nn.Linear(BASIS, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.atom = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))
        self.isolated = nn.Linear(2, 1, bias=False)

    def forward(self, places: Tensor, kinds: Tensor) -> Tensor:
        """Energies `(n,)` of atoms at `(n, ATOMS, 3)`, float32."""
        bumps = torch.linspace(0.9, 2.0, BASIS)
        basis = torch.exp(-100 * (distances(places)[..., None] - bumps).square())
        radial, kind = self.radial(basis), self.kinds(kinds)
        first, second = PAIRS
        felt = torch.zeros(kind.shape)
        felt = felt.index_add(1, first, radial.float() * kind[:, second])
        felt = felt.index_add(1, second, radial.float() * kind[:, first])
        parts = self.atom(felt * kind).float() + self.isolated(F.one_hot(kinds).float()).float()
        return parts.sum((1, 2))

    def with_forces(self, places: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Energies, and forces `(n, ATOMS, 3)` that can be differentiated once more."""
        places = places.detach().requires_grad_()
        with torch.enable_grad():
            energies = self(places, kinds)
            (slope,) = torch.autograd.grad(energies.sum(), places, create_graph=True)
        return energies, -slope


def begin(octaves: float, seed: int) -> Training:
    """`octaves`: by how much the unit of energies is larger than that of forces."""
    parts = clusters()
    held_out = torch.arange(len(parts[0])) % 4 == 0
    train, test = ([part[chosen] for part in parts] for chosen in (~held_out, held_out))
    model = Potential()
    # Isolated atoms' energies have further to go than weights.
    inner = [p for name, p in model.named_parameters() if not name.startswith("isolated")]
    groups = [{"params": inner}, {"params": model.isolated.parameters(), "lr": 0.1}]
    # Below every gradient, or Adam itself would favour the smaller unit.
    optimizer = torch.optim.Adam(groups, lr=1e-2, eps=2.0 ** min(-50, -2 * octaves - 40))

    def loss(step: int) -> Tensor:
        index = torch.randint(len(train[0]), (BATCH,), generator=generator(seed, step))
        places, kinds, energies, forces = (part[index] for part in train)
        energy, force = model.with_forces(places, kinds)
        unit = 2.0**-octaves
        return F.mse_loss(unit * energy, unit * energies) + F.mse_loss(force, forces)

    def score() -> Tensor:
        places, kinds, energies, forces = test
        energy, force = model.with_forces(places, kinds)
        worse = torch.minimum(_explained(energy, energies), _explained(force, forces))
        return worse.clamp(min=0)

    return Training(model, optimizer, loss, score)


def _explained(found: Tensor, true: Tensor) -> Tensor:
    return 1 - (found - true).square().sum() / (true - true.mean(0)).square().sum()


TASK = Task(
    name="energies",
    about="energies and forces of clusters of 6 atoms, Lennard-Jones, Adam with a small eps, "
    "the R² of energies or of forces, whichever is less, at least 0",
    knob="octaves between the units",
    values=(0, 8, 16, 18, 20),
    fast=(0, 20),
    steps=200,
    score="R², the worse of two",
    chance=0.0,
    begin=begin,
)
