"""Names of ranking measures, in the notation of ir_measures.

`nDCG@10`, `RR(rel=2)@10`, `AP`: a name, the lowest relevant grade where it is not 1, and the number
of ranks looked at. Names only; `jobs.evaluation.metrics` computes the values. Standard library
only.

Reference: S. MacAvaney, C. Macdonald, I. Ounis, "Streamlining Evaluation with ir-measures",
ECIR 2022.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: Measures that look at the whole ranking when no cutoff is given.
UNCUT = frozenset({"nDCG", "RR", "AP"})
#: Measures that mean nothing without a cutoff.
CUT = frozenset({"P", "R", "Success", "Judged"})
#: Measures that have no threshold: nDCG takes the grades as gains, Judged asks only for a grade.
GRADED = frozenset({"nDCG", "Judged"})

SUPPORTED = "nDCG[@k], RR[@k], AP[@k], P@k, R@k, Success@k, Judged@k"

# Other people's names for the same thing, in lower case.
_SYNONYMS = {
    "ndcg": "nDCG",
    "mrr": "RR",
    "rr": "RR",
    "recip_rank": "RR",
    "map": "AP",
    "ap": "AP",
    "precision": "P",
    "p": "P",
    "recall": "R",
    "r": "R",
    "success": "Success",
    "hit": "Success",
    "judged": "Judged",
}

_NOTATION = re.compile(
    r"(?P<name>[A-Za-z_]+)"
    r"(?:\(\s*(?P<key>\w+)\s*=\s*(?P<rel>[+-]?\d+)\s*\))?"
    r"(?:@(?P<cutoff>[+-]?\d+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Measure:
    """One measure.

    Args:
        name: nDCG, RR, AP, P, R, Success or Judged.
        cutoff: ranks looked at, at least 1; None looks at all of them (nDCG, RR and AP only).
        rel: lowest grade that counts as relevant, at least 1; nDCG and Judged have none.

    Raises:
        ValueError: the combination is no measure.
    """

    name: str
    cutoff: int | None
    rel: int = 1

    def __post_init__(self) -> None:
        """Refuse what has no definition."""
        if self.name not in UNCUT | CUT:
            raise ValueError(_unknown(self.name))
        if self.cutoff is None and self.name in CUT:
            raise ValueError(
                f"measure {str(self)!r} has no cutoff; write {self.name}@10 or another number of "
                f"ranks (supported: {SUPPORTED})"
            )
        if self.cutoff is not None and self.cutoff < 1:
            raise ValueError(f"measure {str(self)!r} looks at no rank; the least cutoff is @1")
        if self.rel != 1 and self.name in GRADED:
            raise ValueError(
                f"measure {str(self)!r} takes no rel=, for it has no threshold; leave it out"
            )
        if self.rel < 1:
            raise ValueError(
                f"measure {str(self)!r} would count grade {self.rel} as relevant; the least rel= "
                "is 1"
            )

    def __str__(self) -> str:
        """The notation of ir_measures: a threshold of 1 is left out."""
        threshold = "" if self.rel == 1 else f"(rel={self.rel})"
        cutoff = "" if self.cutoff is None else f"@{self.cutoff}"
        return f"{self.name}{threshold}{cutoff}"


def parse_measure(text: str) -> Measure:
    """Read one measure, for example `nDCG@10` or `RR(rel=2)@10`.

    Raises:
        ValueError: naming the value, what is supported and the remedy.
    """
    match = _NOTATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"cannot read measure {text!r}; write NAME, NAME@k or NAME(rel=g)@k "
            f"(supported: {SUPPORTED})"
        )
    if match["key"] not in (None, "rel"):
        raise ValueError(
            f"measure {text!r}: parameter {match['key']!r} is not supported; only rel= is, for "
            "RR, AP, P, R and Success"
        )
    if match["key"] and match["name"] in GRADED:
        raise ValueError(f"measure {text!r} takes no rel=, for it has no threshold; leave it out")
    cutoff = int(match["cutoff"]) if match["cutoff"] else None
    return Measure(match["name"], cutoff, int(match["rel"] or 1))


def parse_measures(texts: Iterable[str]) -> tuple[Measure, ...]:
    """Read several measures, each once, in the order given; all errors in one ValueError."""
    found: dict[Measure, None] = {}
    errors = []
    for text in texts:
        try:
            found[parse_measure(text)] = None
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("\n".join(errors))
    return tuple(found)


def _unknown(name: str) -> str:
    known = _SYNONYMS.get(name.lower())
    hint = f"did you mean {known}?" if known else "choose one of these"
    return f"unknown measure {name!r}; {hint} (supported: {SUPPORTED})"
