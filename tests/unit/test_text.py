from __future__ import annotations

import re

import pytest

from udfs.templates import BLANK, parse_template

TEMPLATE = r"Title: {title}\nAbstract: {abstract}\n{body}"


def test_fields_are_put_in_their_places_and_escapes_become_characters() -> None:
    template = parse_template(TEMPLATE)
    assert template.fields == ("title", "abstract", "body")
    values = {"title": "Fleas", "abstract": "short", "body": "long"}
    assert template.render(values) == "Title: Fleas\nAbstract: short\nlong"
    assert parse_template("{{x}} {a}").render({"a": "1"}) == "{x} 1"


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
    assert parse_template(TEMPLATE, rule).render(values) == expected  # type: ignore[arg-type]


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
