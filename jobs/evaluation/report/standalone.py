"""The report's drawings as files of their own, for a slide or a list of artifacts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from jobs.evaluation.report import figures

_DRAWN: Final = (
    figures.win_loss,
    figures.flow,
    figures.rank_changes,
    figures.scores,
    figures.reliability,
    figures.lengths,
)
_FONT: Final = "font-family: system-ui, sans-serif"


def standalone(document: Mapping[str, Any]) -> dict[str, str]:
    """SVG by name of the drawing; those that the document has no numbers for are left out.

    Args:
        document: as for `jobs.evaluation.report.report.render`; texts in it are not drawn.
    """
    found = {draw.__name__: draw(document) for draw in _DRAWN}
    return {name: _alone("".join(plot.drawing)) for name, plot in found.items() if plot is not None}


def _alone(drawing: str) -> str:
    """On paper of its own, in colours that need no page."""
    box = re.search(r'viewBox="([^"]*)"', drawing)
    assert box is not None
    left, top, width, height = box[1].split()
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" style="{_FONT}"'
    )
    paper = f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="var(--paper)"/>'
    head, _, body = drawing.replace("<svg", start, 1).partition(">")
    whole = f"{head}>{paper}{body}"
    return re.sub(r"var\(--(\w+)\)", lambda name: _light()[name[1]], whole) + "\n"


@cache
def _light() -> dict[str, str]:
    """The page's colours by day: they come first in its style sheet."""
    css = files("jobs.evaluation.report").joinpath("report.css").read_text("utf-8")
    return dict(reversed(re.findall(r"--(\w+): (#\w+);", css)))
