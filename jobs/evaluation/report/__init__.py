"""The evaluation and the tuning document as HTML pages for people.

`render` makes report.html and its plots, `render_tuning` makes tune.html. A page is one file
without scripts and without references to the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Matplotlib takes half a second to import, so only a run that ends in a report imports it.


def render(
    document: Mapping[str, Any], record: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, str]]:
    """Return the evaluation as an HTML page, and its plots as SVG files by name.

    Args:
        document: content of metrics.json, with `examples` where texts are to be shown. A block
            that is missing, None or empty has no part in the page.
        record: content of run.json, for `run_id`, `started`, `config` and `versions`.
    """
    from jobs.evaluation.report.report import render as page
    from jobs.evaluation.report.standalone import standalone

    about = (
        {key: record[key] for key in ("run_id", "started", "config", "versions")} if record else {}
    )
    whole = {"examples": [], **document, **about}
    return page(whole), standalone(whole)


def render_tuning(document: Mapping[str, Any]) -> str:
    """Return the content of tune.json as an HTML page."""
    from jobs.evaluation.report.tuning import render as page

    return page(document)
