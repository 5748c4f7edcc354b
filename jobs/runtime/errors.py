"""The errors a user can mend, and the exit code each ends with."""

from __future__ import annotations

from collections.abc import Sequence

DONE = 0
UNEXPECTED = 1
REFUSED = 2
TOO_MANY_REJECTS = 3
GATE_NOT_PASSED = 4
NOT_TRACKED = 5


class RefusedError(Exception):
    """Configuration or input that cannot be used. Nothing has been written.

    Args:
        findings: one sentence per finding, each with the value, the limit and the remedy; never a
            text of a query or document.
    """

    def __init__(self, findings: str | Sequence[str]) -> None:
        """Keep the findings as a list, whatever was given."""
        self.findings = [findings] if isinstance(findings, str) else list(findings)
        super().__init__("\n".join(self.findings))


class LockedError(Exception):
    """Another run is moving its results to the same places and does not end."""


class BookkeepingError(Exception):
    """Rows written do not add up to rows read. The output folder keeps its former content."""
