"""Numbers as people read them: one way to write each kind, wherever in the report it stands.

Every function takes None and NaN and writes a dash for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeGuard

from jobs.evaluation.significance import SIGNIFICANT

NONE: Final = "–"
_HARD: Final = "\u00a0"  # a blank that no line is broken at


def known(number: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(number, int | float) and math.isfinite(number)


def fixed(number: float | None, digits: int = 4) -> str:
    """With so many decimals, as the values of measures: "0.5732"."""
    if not known(number):
        return NONE
    text = f"{number:,.{digits}f}"
    return _minus(text if float(text.replace(",", "")) else text.lstrip("-"))


def signed(number: float | None, digits: int = 4) -> str:
    """With its sign, as differences: "+0.0674"; a zero has none."""
    text = fixed(number, digits)
    return f"+{text}" if known(number) and text[0] != "−" and text.strip("0.,") else text


def span(ends: Sequence[float] | None, digits: int = 3, *, sign: bool = False) -> str:
    """An interval: "0.525 to 0.621"; empty where there is none."""
    if not ends or not all(known(end) for end in ends):
        return ""
    write = signed if sign else fixed
    return f"{write(ends[0], digits)} to{_HARD}{write(ends[1], digits)}"


def p_value(p: float | None) -> str:
    """Three decimals, and more where 0.05 would be met by rounding."""
    if not known(p):
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.4f}" if round(p, 3) == SIGNIFICANT and p != SIGNIFICANT else f"{p:.3f}"


def p_equation(p: float | None) -> str:
    """For a sentence: "p = 0.003", "p < 0.001"."""
    text = p_value(p)
    equation = f"p {text}" if text.startswith("<") else f"p = {text}"
    return equation.replace(" ", _HARD)


def significant(p: float | None) -> bool:
    """Whether a p after Holm's correction is below the level."""
    return known(p) and p < SIGNIFICANT


def share(part: float | None, digits: int = 1) -> str:
    """A part of 1 in percent: "90.7%". What is not quite nothing or all is not rounded to it."""
    if not known(part):
        return NONE
    least = 10.0**-digits
    if 0 < 100 * part < least / 2:
        return f"< {least:g}%"
    if 100 - least / 2 < 100 * part < 100:
        return f"> {100 - least:g}%"
    return _minus(f"{100 * part:.{digits}f}%")


def count(number: float | None) -> str:
    """A whole number: "4,300"."""
    return f"{round(number):,}" if known(number) else NONE


def amount(number: float | None) -> str:
    """A measured quantity, to three or four digits: "9.5", "166", "17,115", "0.43"."""
    if not known(number):
        return NONE
    size = abs(number)
    if size >= 100:
        return _minus(f"{number:,.0f}")
    return _minus(f"{number:.1f}" if size >= 1 or not size else f"{number:.2g}")


def beside(value: float | None, limit: float | None) -> str:
    """A value with as many digits as it takes to tell it from a limit."""
    if not known(value):
        return NONE
    for digits in range(4, 17):
        text = _general(value, digits)
        if not known(limit) or value == limit or text != _general(limit, digits):
            break
    return text


def compact(number: float) -> str:
    """For the axes of plots: "950", "1,210", "6k", "1.5M"."""
    if abs(number) < 1000 or (abs(number) < 10_000 and number % 100):
        return _minus(f"{number:,g}")
    sizes = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    # What three digits would round up to the next size is of that size.
    size, letter = next(found for found in sizes if abs(number) >= 0.9995 * found[0])
    return _minus(f"{number / size:.3g}{letter}")


def seconds(time: float | None) -> str:
    """A duration: "7.9 s", "12 min 5 s", "2 h 3 min"."""
    if not known(time):
        return NONE
    if time < 60:
        return f"{time:.1f} s"
    minutes, rest = divmod(round(time), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def moment(iso: Any) -> str:
    """A time stamp in UTC: "2026-11-22 01:00 UTC". What is not one is left as it is."""
    try:
        time = datetime.fromisoformat(str(iso))
    except ValueError:
        return str(iso)
    return f"{time.astimezone(UTC) if time.tzinfo else time:%Y-%m-%d %H:%M} UTC"


def many(number: float, singular: str, plural: str = "") -> str:
    """A number and its noun: "1 query", "43 queries"."""
    return f"{count(number)} {singular if number == 1 else plural or singular + 's'}"


def queries(number: float) -> str:
    """So many queries."""
    return many(number, "query", "queries")


def shortened(name: str, most: int = 28) -> str:
    """A name that fits the head of a column; its middle is left out where it is longer."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[1 - half :]}"


def _general(number: float, digits: int) -> str:
    text = f"{number:,.0f}" if abs(number) >= 10**digits else f"{number:.{digits}g}"
    return _minus(text)


def _minus(text: str) -> str:
    return text.replace("-", "−")
