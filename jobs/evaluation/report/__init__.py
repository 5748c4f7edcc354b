"""The evaluation and the tuning document as HTML pages for people.

A page is one file without scripts and without references to the network. What it shows is in
`templates/`; its headline is made in `verdict`, its warnings in `jobs.evaluation.result`.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader

from jobs.evaluation.report import figures, formatting
from jobs.evaluation.report.formatting import fixed, known
from jobs.evaluation.report.verdict import first_measure, verdict
from jobs.evaluation.significance import SIGNIFICANT

Document = Mapping[str, Any]


def render(document: Document, record: Document | None = None) -> tuple[str, dict[str, str]]:
    """Return the evaluation as an HTML page, and its plots as SVG files by name.

    Args:
        document: content of metrics.json, with `examples` where texts are to be shown. A block
            that is missing, None or empty has no part in the page.
        record: content of run.json, for `run_id`, `started`, `config` and `versions`.
    """
    about = {key: (record or {}).get(key) for key in ("run_id", "started", "config", "versions")}
    whole = {k: v for part in (document, about) for k, v in part.items() if v is not None}
    plots = figures.draw(whole, figures.EVALUATION)
    parts = {"verdict": verdict(whole), "first": first_measure(whole)}
    return _page("evaluation", whole, plots, **parts), plots


def render_tuning(document: Document) -> str:
    """Return the content of tune.json as an HTML page."""
    return _page("tuning", document, figures.draw(document, (figures.pareto,)))


def compare_slices(rows: Sequence[Document], measure: str) -> Document:
    """Return the comparison of both orders by one measure, a row per value of a column."""

    def of(key: str) -> dict[str, Any]:
        return {row["value"]: row[key].get(measure) for row in rows if row.get(key)}

    return {
        "names": ("first stage", "reranked"), "rows": [row["value"] for row in rows],
        "queries": {row["value"]: row.get("queries") for row in rows},
        "before": of("first_stage"), "after": of("reranked"), "delta": of("delta"),
        "delta_ends" if of("delta") else "after_ends": of("intervals"),
        "tests": {value: {"p_holm": p} for value, p in of("p_holm").items()},
    }  # fmt: skip


def scale(delta: Document, ends: Document) -> tuple[float, float] | None:
    """Return where the intervals of a table begin and how wide they are; None without any."""
    spread = [end for pair in ends.values() for end in pair or ()]
    numbers = [0.0, *filter(known, [*delta.values(), *spread])]
    return (min(numbers), max(numbers) - min(numbers)) if any(numbers) else None


def best(systems: Sequence[Document], measure: str) -> str:
    """Return the highest value of a measure, as the table shows it."""
    values = [system["values"].get(measure) for system in systems]
    return fixed(max(filter(known, values), default=None))


def flatten(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested mappings as (dotted name, text)."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from flatten(value, f"{name}.{key}" if name else str(key))
    else:
        plain = isinstance(content, str) and content
        yield name, content if plain else json.dumps(content, ensure_ascii=False, default=str)


def _page(name: str, document: Document, plots: Mapping[str, str], **parts: Any) -> str:
    environment = Environment(
        # It reads through the import system, so a package in a zip file is as good.
        loader=PackageLoader("jobs.evaluation.report"),
        autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= dict(inspect.getmembers(formatting, inspect.isfunction))
    environment.filters |= {"embedded": figures.embedded}
    environment.filters |= {each.__name__: each for each in (compare_slices, scale, best, flatten)}
    environment.globals |= {"themes": (figures.LIGHT, figures.DARK), "significant": SIGNIFICANT}
    template = environment.get_template(f"{name}.html.j2")
    html = template.render(document=document, plots=plots, **parts)
    # A lone surrogate in an id or a text is no character that a file can hold.
    return html.encode("utf-8", "replace").decode("utf-8")
