"""One thing that is wrong, or worth knowing: what, how that is known, and the way out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from gradscale.files.json_text import JsonObject

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """What the doctor found.

    Args:
        severity: ``"error"`` if training is broken, ``"warning"`` if it is probably harmed,
            ``"note"`` for what is worth knowing in a healthy run.
        code: a word for programs, such as ``"at-floor"``; it stays the same in later versions.
        what: the finding in a sentence.
        evidence: the numbers that it rests on.
        way_out: what to do.
        where: in which state, where the file holds several.

    Example:
        >>> print(Finding("error", "zero", "The scale is 0.", "scale = 0.", "Set it to 65536."))
        error    The scale is 0.
                 Because: scale = 0.
                 Do: Set it to 65536.
    """

    severity: Severity
    code: str
    what: str
    evidence: str
    way_out: str
    where: str = ""

    @property
    def problem(self) -> bool:
        """Whether it is more than a note."""
        return self.severity != "note"

    def to_dict(self) -> JsonObject:
        """As words of JSON.

        Example:
            >>> Finding("note", "x", "A.", "B.", "C.").to_dict()["severity"]
            'note'
        """
        return asdict(self)

    def words(self, *, where: bool = True) -> str:
        """As text of three or four lines.

        Args:
            where: whether to say in which state it was found.

        Example:
            >>> len(Finding("note", "x", "A.", "B.", "C.", "rank 3").words().splitlines())
            4
        """
        lines = [f"{self.severity:<8} {self.what}"]
        lines += [f"{'':8} In: {self.where}"] if where and self.where else []
        return "\n".join([*lines, f"{'':8} Because: {self.evidence}", f"{'':8} Do: {self.way_out}"])

    def __str__(self) -> str:
        return self.words()
