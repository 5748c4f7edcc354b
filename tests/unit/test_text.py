from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from udfs.templates import BLANK, Template, parse_template

TEMPLATE = r"Title: {title}\nAbstract: {abstract}\n{body}"


def render(template: Template, values: Mapping[str, str | None]) -> str | None:
    """What Spark is to make of a row; `tests/spark/test_tables.py` holds it to this."""
    given = {name: values.get(name) or "" for name in template.fields}
    blank = {name for name, value in given.items() if re.fullmatch(BLANK, value)}
    present = {name: "" if name in blank else value for name, value in given.items()}
    if len(blank) == len(given) or (blank and template.missing == "reject"):
        return None
    lines = []
    for line in template.lines:
        fields = {piece.text for piece in line if piece.is_field}
        if template.missing == "drop_line" and fields and fields <= blank:
            continue
        lines.append("".join(present[p.text] if p.is_field else p.text for p in line))
    return "\n".join(lines)


def test_fields_are_put_in_their_places_and_escapes_become_characters() -> None:
    template = parse_template(TEMPLATE)
    assert template.fields == ("title", "abstract", "body")
    values = {"title": "Fleas", "abstract": "short", "body": "long"}
    assert render(template, values) == "Title: Fleas\nAbstract: short\nlong"
    assert render(parse_template("{{x}} {a}"), {"a": "1"}) == "{x} 1"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("drop_line", "Title: Fleas\nlong"),
        ("empty", "Title: Fleas\nAbstract: \nlong"),
        ("reject", None),
    ],
)
@pytest.mark.parametrize("missing", [None, "", " \u3000\u200b"])
def test_the_rule_for_missing_fields(rule: str, expected: str | None, missing: str | None) -> None:
    values = {"title": "Fleas", "abstract": missing, "body": "long"}
    template = parse_template(TEMPLATE, rule)  # type: ignore[arg-type]
    assert render(template, values) == expected


@pytest.mark.parametrize("source", ["{title", "title}", "{}", "{a{b}}"])
def test_a_stray_brace_is_refused_with_its_place(source: str) -> None:
    with pytest.raises(ValueError, match="stray brace at character"):
        parse_template(source)


def test_a_template_without_a_field_is_refused() -> None:
    with pytest.raises(ValueError, match="names no field"):
        parse_template("always the same")


def test_blank_covers_what_python_calls_white_space_and_what_shows_nothing() -> None:
    for code in range(0x3001):
        if chr(code).isspace():
            assert re.fullmatch(BLANK, chr(code)), hex(code)
    assert re.fullmatch(BLANK, "\x00 \u200b\u2060\ufeff\u00ad")
    assert not re.fullmatch(BLANK, " . ")
