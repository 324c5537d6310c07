"""What the doctor says of a file: the scalers in it, what they mean, what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass

from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding
from gradscale.doctor.state_sentences import state_sentences
from gradscale.files.json_text import JsonObject

_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Diagnosis:
    """The result of `examine`.

    Attributes:
        path: what was examined.
        patients: the scalers that were found.
        findings: what is wrong with them, the worst first, and what is worth knowing.

    Example:
        >>> Diagnosis("checkpoint.pt", (), ()).healthy
        True
    """

    path: str
    patients: tuple[Patient, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there are only notes."""
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that are more than notes."""
        return tuple(finding for finding in self.findings if finding.problem)

    @property
    def several(self) -> bool:
        """Whether a finding must say which scaler it is about."""
        return len(self.patients) > 1

    @property
    def summary(self) -> str:
        """The result in a line.

        Example:
            >>> Diagnosis("checkpoint.pt", (), ()).summary
            'No problem found.'
        """
        count = len(self.problems)
        return "No problem found." if not count else f"{count} problem{'s' * (count > 1)} found."

    def to_dict(self) -> JsonObject:
        """As words of JSON.

        Example:
            >>> Diagnosis("checkpoint.pt", (), ()).to_dict()["healthy"]
            True
        """
        return {
            "path": self.path,
            "healthy": self.healthy,
            "scalers": [patient.to_dict() for patient in self.patients],
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        parts = [patient_words(patient) for patient in self.patients]
        found = [finding.words(where=self.several) for finding in self.findings]
        return "\n\n".join([*parts, *found, self.summary])


def patient_words(patient: Patient) -> str:
    """A scaler and what its state means.

    Example:
        >>> print(patient_words(Patient("fairseq", '["last_optimizer_state"]', 128.0)))
        fairseq's FP16Optimizer at ["last_optimizer_state"]
          Loss scale 2^7 (128).
    """
    where = f" at {patient.where}" if patient.where else ""
    ranks = f", the same in {patient.files} files" if patient.files > 1 else ""
    return "\n".join(
        [f"{patient.name}{where}{ranks}", *(f"  {s}" for s in state_sentences(patient))]
    )


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then notes; each in the order in which they were found.

    Example:
        >>> note, error = (Finding(s, "x", "A.", "B.", "C.") for s in ("note", "error"))
        >>> [finding.severity for finding in worst_first([note, error])]
        ['error', 'note']
    """
    # `sorted` is stable: of one severity the order of the checks stays.
    return tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity]))
