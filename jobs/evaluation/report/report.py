"""The evaluation document -> one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs.evaluation.report import words
from jobs.evaluation.report.parts import Cell, Column, Table
from jobs.evaluation.report.sections import sections
from jobs.evaluation.report.verdict import figures, verdict

_EXAMPLE_CHARACTERS: Final = 320  # of a document; what comes after them is left out


def render(document: Mapping[str, Any]) -> str:
    """Write the report.

    Args:
        document: what the evaluation found, as plain data. A block that is missing, None or empty
            has no part in the report.

    Returns:
        A whole HTML page. The same document gives the same text.
    """
    return page(
        kind="Reranking evaluation",
        title=str(document.get("name") or "reranked"),
        about=_about(document),
        verdict=verdict(document),
        figures=figures(document),
        sections=sections(document),
        examples=[_example(example) for example in document.get("examples") or []],
        settings=settings(document),
    )


def page(**parts: Any) -> str:
    """Lay out a page. The parts are the names that the template uses."""
    # The loader reads through the import system, so a package in a zip file is as good.
    environment = Environment(
        loader=PackageLoader("jobs.evaluation.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(**parts)
    # A lone surrogate in an id or a text is no character that a file could hold.
    return html.encode("utf-8", "replace").decode("utf-8")


def _about(document: Mapping[str, Any]) -> list[str]:
    """When, which model, which run."""
    model = (document.get("operations") or {}).get("model") or {}
    about = [words.moment(document["started"])] if document.get("started") else []
    about += [str(model["name"])] if model.get("name") else []
    about += [f"run {document['run_id']}"] if document.get("run_id") else []
    return about


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    ranks = {row["doc_id"]: row["rank"] for row in example.get("before") or []}
    return {
        "query_id": str(example["query_id"]),
        "query": str(example.get("query") or ""),
        "orders": [
            (name, [_document(row, former) for row in example.get(key) or []])
            for name, key, former in (("Before", "before", {}), ("After", "after", ranks))
        ],
    }


def _document(row: Mapping[str, Any], ranks: Mapping[Any, int]) -> dict[str, Any]:
    """A document of an example query, and where it was if that is known."""
    text = str(row.get("text") or "")
    if len(text) > _EXAMPLE_CHARACTERS:
        text = text[:_EXAMPLE_CHARACTERS].rstrip() + " …"
    before, label = ranks.get(row["doc_id"]), row.get("label")
    moved = "" if before in (None, row["rank"]) else f"was {before}"
    return {
        "rank": row["rank"],
        "doc_id": str(row["doc_id"]),
        "text": text,
        "label": "not judged" if label is None else f"grade {label}",
        "relevant": words.known(label) and label > 0,
        "moved": moved,
    }


def settings(document: Mapping[str, Any]) -> list[Table]:
    """Configuration and versions, key by key."""
    tables = []
    config = document.get("config") or {}
    rows = [row for section, content in config.items() for row in _flat(str(section), content)]
    for title, name, found in (
        ("Configuration", "key", rows),
        ("Versions", "package", list((document.get("versions") or {}).items())),
    ):
        if found:
            columns = (Column(name, number=False), Column("value", number=False))
            cells = [[Cell(str(key)), Cell(_plain(value))] for key, value in found]
            tables.append(Table(title, columns, cells))
    return tables


def _flat(name: str, content: Any) -> Sequence[tuple[str, Any]]:
    if isinstance(content, Mapping) and content:
        return [row for key, value in content.items() for row in _flat(f"{name}.{key}", value)]
    return [(name, content)]


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, ensure_ascii=False, default=str)
