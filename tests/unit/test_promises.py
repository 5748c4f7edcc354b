"""The tables of tests/README.md name tests that are there."""

from __future__ import annotations

import re

from tests.conftest import ROOT

README = (ROOT / "tests" / "README.md").read_text("utf-8")


def test_every_test_that_stands_for_a_promise_is_there() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)`: `(test_\w+)`", README)
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{file}: {name}"


def test_every_file_that_a_row_names_is_there() -> None:
    for file in re.findall(r"`((?:unit/|spark/|faults/)?test_\w+\.py)`", README):
        folder = "" if "/" in file else "faults/"
        assert (ROOT / "tests" / f"{folder}{file}").exists(), file
