"""Numbers as people read them; the functions are the filters of the templates.

Most take None, NaN and values that are not defined, and return a dash for them.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeGuard

from jobs.evaluation.significance import SIGNIFICANT

NONE: Final = "–"


def known(number: Any) -> TypeGuard[float]:
    """Return whether it is a finite number."""
    return isinstance(number, int | float) and math.isfinite(number)


def fixed(number: Any, digits: int = 4) -> str:
    """Return a number with so many decimals: "0.5732"."""
    if not known(number):
        return NONE
    text = f"{number:,.{digits}f}"
    return _minus(text if text.strip("-0.,") else text.lstrip("-"))


def signed(number: Any, digits: int = 4) -> str:
    """Return a difference with its sign: "+0.0674"; a zero has none."""
    text = fixed(number, digits)
    return f"+{text}" if known(number) and number > 0 and text.strip("0.,") else text


def span(ends: Sequence[float] | None, digits: int = 3, sign: bool = False) -> str:
    """Return an interval: "0.525 to 0.621"; empty where there is none."""
    if not ends or not all(map(known, ends)):
        return ""
    low, high = ((signed if sign else fixed)(end, digits) for end in ends)
    return f"{low} to\u00a0{high}"


def p_value(p: Any) -> str:
    """Return three decimals, and a fourth where rounding would give the level itself."""
    if not known(p):
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.4f}" if round(p, 3) == SIGNIFICANT and p != SIGNIFICANT else f"{p:.3f}"


def share(part: Any) -> str:
    """Return a part of 1 in percent: "90.7%". Only 0 is "0.0%" and only 1 is "100.0%"."""
    if not known(part):
        return NONE
    if 0 < part < 0.0005:
        return "< 0.1%"
    return "> 99.9%" if 0.9995 < part < 1 else _minus(f"{part:.1%}")


def count(number: Any) -> str:
    """Return a whole number: "4,300"."""
    return f"{round(number):,}" if known(number) else NONE


def amount(number: Any) -> str:
    """Return a measured quantity with two to four digits: "9.5", "166", "17,115", "0.43"."""
    if not known(number):
        return NONE
    digits = ",.0f" if abs(number) >= 100 else ".1f" if abs(number) >= 1 or not number else ".2g"
    return _minus(f"{number:{digits}}")


def beside(value: Any, limit: Any) -> str:
    """Return a value with as many digits as it takes to tell it from a limit."""
    for digits in range(4, 17):
        text, other = (fixed(x, digits).rstrip("0").rstrip(".") for x in (value, limit))
        if text != other or value == limit:
            break
    return text


def seconds(time: Any) -> str:
    """Return a duration: "7.9 s", "12 min 5 s", "2 h 3 min"."""
    if not known(time):
        return NONE
    minutes, rest = divmod(round(time), 60)
    if time < 60:
        return f"{time:.1f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def moment(iso: str) -> str:
    """Return a time stamp in UTC: "2026-11-22 01:00 UTC"."""
    return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def many(number: Any, noun: str) -> str:
    """Return a number and its noun: "1 query", "43 queries", "2 pairs"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count(number)} {noun if number == 1 else plural}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
