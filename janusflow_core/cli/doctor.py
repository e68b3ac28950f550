"""janusflow doctor: what keeps JanusFlow from working here."""

from __future__ import annotations

from dataclasses import dataclass

from .options import status


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look for what keeps JanusFlow from working here; prints a report to paste into an issue."""

    model: str | None = None
    """Examine this checkpoint too."""

    def run(self) -> int:
        """Examine; the status is 1 if something is broken, else 0."""
        from ..host.doctor import examine, healthy, report

        with status("looking around"):
            findings = examine(self.model)
        print(report(findings))
        return int(not healthy(findings))
