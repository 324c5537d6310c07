"""The structures that layer-wise scaling remembers: those met last, and those read from a file."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from gradscale.argument_checks import check_whole
from gradscale.backward.graph import BackwardGraph
from gradscale.layerwise.saved_plans import SavedTrack
from gradscale.layerwise.track import Track


class Tracks:
    """Tracks by signature. The one unused for longest is forgotten first.

    Args:
        keep: how many to remember, at least 1.

    Raises:
        ValueError: if `keep` is no whole number of at least 1.
    """

    def __init__(self, keep: int) -> None:
        check_whole("Layerwise", "keep", keep, 1, "There is at least one plan to follow.")
        self.keep = keep
        self._tracks: OrderedDict[str, Track] = OrderedDict()
        self._saved: dict[str, SavedTrack] = {}

    def __len__(self) -> int:
        return len(self._tracks)

    def __iter__(self) -> Iterator[Track]:
        """From the one unused for longest to the latest."""
        return iter(list(self._tracks.values()))

    def __contains__(self, signature: str) -> bool:
        return signature in self._tracks

    def __getitem__(self, signature: str) -> Track:
        return self._tracks[signature]

    @property
    def latest(self) -> Track | None:
        """The track of the graph met last."""
        return next(reversed(self._tracks.values()), None)

    @property
    def followed(self) -> bool:
        """Whether a plan may have to be attached: one is not uniform, or not met yet."""
        return bool(self._saved) or any(not t.plan.is_uniform for t in self._tracks.values())

    def of(self, graph: BackwardGraph) -> Track:
        """The track of a graph's structure: known, read from a file, or new and uniform."""
        key = graph.signature
        if key not in self._tracks:
            saved = self._saved.pop(key, None)
            self._tracks[key] = Track(graph) if saved is None else _restored(graph, saved)
            while len(self._tracks) > self.keep:
                self._tracks.popitem(last=False)
        self._tracks.move_to_end(key)
        track = self._tracks[key]
        track.graph = graph
        return track

    def state_dict(self) -> str:
        """By signature, what each track saves, as JSON.

        One text, because `torch.distributed.checkpoint` loads into the keys that are there before:
        of a dictionary by signature a scaler that has met no graph yet would be given nothing.
        """
        saved = {key: track.as_dict() for key, track in self._saved.items()}
        tracks = {key: track.state_dict() for key, track in self._tracks.items()}
        return json.dumps({**saved, **tracks}, sort_keys=True)

    def take_over(self, saved: Mapping[str, SavedTrack]) -> None:
        """Forgets all tracks; the saved ones come back as their graphs are met."""
        self._tracks.clear()
        self._saved = dict(saved)


def _restored(graph: BackwardGraph, saved: SavedTrack) -> Track:
    if saved.fits(graph):
        return Track.restored(graph, saved)
    warnings.warn(
        f"layer-wise scaling: the saved plan of {len(saved.plan.exponents)} nodes does not fit the "
        f"graph of {len(graph)} nodes that has its signature; it is planned anew.",
        stacklevel=2,
    )
    return Track(graph)
