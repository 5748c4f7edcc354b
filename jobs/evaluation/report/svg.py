"""A matplotlib figure as SVG that belongs to the page around it.

Text stays text in the page's font, colours are the page's CSS variables and so follow light, dark
and print, and no id meets that of another figure.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, Final

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

# matplotlib wants colours it knows: each stands for the variable of that name in report.css.
INK: Final = "#010101"
MUTED: Final = "#020202"
RULE: Final = "#030303"
PAPER: Final = "#040404"
HELPED: Final = "#050505"
HURT: Final = "#060606"
BARS: Final = "#070707"
QUIET: Final = "#080808"
VARIABLES: Final = {
    INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper",
    HELPED: "helped", HURT: "hurt", BARS: "bars", QUIET: "quiet",
}  # fmt: skip

#: Width of every figure [inches]; 353 units of SVG, about as many pixels as a phone has.
WIDTH: Final = 4.9

_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    # Names of measures are no formulas.
    "text.parse_math": False,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "hatch.color": PAPER,
}


def draw(name: str, height: float, label: str, paint: Callable[[Figure], None]) -> Markup:
    """Paint a figure and make it part of a page.

    Args:
        name: unlike that of any other figure of the page; letters and hyphens.
        height: of the figure [inches].
        label: what the figure shows, for those who do not see it.
        paint: draws into the empty figure, in the colours above.
    """
    buffer = io.StringIO()
    # A matplotlibrc of the user's, or another part of the process, has no say here.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = _STYLE | {"svg.hashsalt": name}
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return Markup(_embedded(buffer.getvalue(), name, label))


def _embedded(document: str, name: str, label: str) -> str:
    box = re.search(r'viewBox="[^"]*"', document)
    assert box is not None
    body = document[document.index(">", document.index("<svg")) + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = body.replace("xlink:href=", "href=")
    body = _own_ids(body, name)
    for placeholder, variable in VARIABLES.items():
        body = body.replace(placeholder, f"var(--{variable})")
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><").replace(' "', '"')
    return f'<svg class="plot" {box[0]} role="img" aria-label="{escape(label)}">{body.strip()}'


def _own_ids(body: str, name: str) -> str:
    """Keep the ids that something refers to, with the figure's name in front."""
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(
        r' id="([^"]*)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "",
        body,
    )
    return re.sub(r'((?:href="|url\()#)', rf"\g<1>{name}-", body)
