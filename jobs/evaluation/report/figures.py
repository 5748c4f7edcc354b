"""The plots of both pages: numbers of a document -> SVG. Without numbers nothing is drawn."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any, Final

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter

from jobs.evaluation.report.formatting import count, known, many

Document = Mapping[str, Any]
Painter = Callable[[Figure, Document], None]

#: Colours of the pages and the plots; the style sheet gets them as variables.
LIGHT: Final = {
    "paper": "#fcfcfb", "ink": "#1a2126", "muted": "#56616a", "rule": "#dde2e5",
    "helped": "#005f99", "hurt": "#b04600", "bars": "#47707f", "quiet": "#7f8b94",
}  # fmt: skip
DARK: Final = {
    "paper": "#13181b", "ink": "#e3e8ea", "muted": "#9ba8b0", "rule": "#2e373d",
    "helped": "#6bb6f0", "hurt": "#f2a069", "bars": "#86b3c4", "quiet": "#74818a",
}  # fmt: skip

_WIDTH: Final = 4.9  # inches: 353 units of SVG, about as many pixels as a phone has
_DASHED: Final[dict[str, Any]] = {"linewidth": 1, "linestyle": (0, (4, 3))}
_MANY_BARS: Final = 60  # more bars than this are drawn without gaps
_NEAR: Final = 1.6  # a limit further out than this many times the longest pair is not drawn
_NO_METADATA: Final = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_THOUSANDS: Final = StrMethodFormatter("{x:,.0f}")
_SHORT: Final = EngFormatter(sep="")
_STYLE: Final[Any] = {
    # Text stays text, in the fonts of the reader; names of measures are no formulas.
    "svg.fonttype": "none", "text.parse_math": False,
    "font.size": 11, "axes.titlesize": 11, "xtick.labelsize": 10.5, "ytick.labelsize": 10.5,
    "figure.facecolor": LIGHT["paper"], "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["muted"], "axes.labelcolor": LIGHT["muted"], "axes.linewidth": 0.8,
    "axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y",
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "grid.color": LIGHT["rule"], "grid.linewidth": 0.8, "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"], "ytick.color": LIGHT["muted"], "ytick.major.size": 0,
}  # fmt: skip


def draw(document: Document, painters: Sequence[Painter]) -> dict[str, str]:
    """Return SVG files by the painter's name, for what the document has numbers for."""
    files = {}
    # A matplotlibrc of the user's, or another part of the process, has no say here.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        for painter in painters:
            matplotlib.rcParams["svg.hashsalt"] = painter.__name__
            figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
            painter(figure, document)
            if figure.axes:
                file = io.StringIO()
                figure.savefig(file, format="svg", metadata=_NO_METADATA)
                files[painter.__name__] = file.getvalue()
    return files


def embedded(svg: str) -> Markup:
    """Return an SVG file as a part of a page: in the page's colours, without ids that repeat."""
    body = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    return Markup(re.sub(r"\s*\n\s*", " ", body))


def win_loss(figure: Figure, document: Document) -> None:
    """Draw the differences per query, the best first; all queries or an even sample of them."""
    found = document.get("per_query") or {}
    values = np.array([value for value in found.get("differences") or [] if known(value)])
    if not values.any():
        return
    test = (document.get("tests") or {}).get(found["measure"]) or {}
    drawn = {"helped": values > 0, "hurt": values < 0, "tied": values == 0}
    numbers = {key: test.get(key, int(part.sum())) for key, part in drawn.items()}
    step = sum(numbers.values()) / len(values)
    edges = [place * step for place in range(len(values) + 1)]
    axes = _axes(figure, 3.1, f"change of {found['measure']}", "queries, the most helped first")
    sides: Any = (("helped", "▲", "left"), ("hurt", "▼", "right"))
    for key, sign, place in sides:
        heights = np.where(drawn[key], values, 0.0)
        if len(values) <= _MANY_BARS:
            axes.bar(edges[:-1], heights, 0.8 * step, align="edge", color=LIGHT[key])
        else:
            axes.stairs(heights, edges, fill=True, color=LIGHT[key], linewidth=0)
        axes.set_title(f"{sign} {count(numbers[key])} {key}", loc=place, color=LIGHT[key])
    axes.set_title(f"{count(numbers['tied'])} tied", color=LIGHT["muted"])
    axes.axhline(0, color=LIGHT["ink"], linewidth=0.8)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:+.2g}".replace("-", "−") if y else "0")


def flow(figure: Figure, document: Document) -> None:
    """Draw the documents now among the first k, by the rank they had before."""
    found = (document.get("moved") or {}).get("flow") or {}
    counts = {str(row["from"]).replace("-", "–"): row["count"] for row in found.get("rows") or []}
    if not any(counts.values()):
        return
    height = 0.9 + 0.36 * len(counts)
    axes = _axes(figure, height, "rank before", f"documents now among the first {found['k']}")
    bars = axes.barh(list(counts), list(counts.values()), 0.68, color=LIGHT["bars"])
    axes.bar_label(bars, fmt=_THOUSANDS, padding=4)
    axes.invert_yaxis()
    axes.grid(False)
    axes.margins(x=0.14)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)


def rank_changes(figure: Figure, document: Document) -> None:
    """Draw by how many ranks documents moved; positive is up."""
    moved = document.get("moved") or {}
    histogram = dict((moved.get("rank_change") or {}).get("histogram") or [])
    if not any(histogram.values()):
        return
    axes = _axes(figure, 2.8, "documents", "← down · ranks moved · up →")
    lows, width = list(histogram), moved.get("bin_width") or 1
    axes.bar(lows, list(histogram.values()), 0.92 * width, align="edge", color=LIGHT["bars"])
    axes.axvline(0, color=LIGHT["ink"], linewidth=0.8)
    reach = max(-min(lows), max(lows) + width)
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _count_axis(axes)


def scores(figure: Figure, document: Document) -> None:
    """Draw a histogram of scores per kind of judgement, each in percent of its own pairs."""
    found = document.get("scores") or {}
    colours = {"relevant": "helped", "not_relevant": "hurt", "unjudged": "quiet"}
    parts = {key: np.array(found[key]) for key in colours if any(found.get(key) or [])}
    if not parts:
        return
    figure.set_figheight(0.9 + 1.15 * len(parts))
    rows = figure.subplots(len(parts), 1, sharex=True, sharey=True, squeeze=False)
    for axes, (key, counts) in zip(rows[:, 0], parts.items(), strict=True):
        total, colour = counts.sum(), LIGHT[colours[key]]
        axes.stairs(100 * counts / total, found["edges"], fill=True, color=colour, linewidth=0)
        axes.set_title(f"{key.replace('_', ' ')}, {many(int(total), 'pair')}", loc="left")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(3))
    rows[0, 0].set_ylim(bottom=0)
    rows[-1, 0].set_xlabel("raw score [logit]")
    figure.supylabel("share of pairs", color=LIGHT["muted"], fontsize=11)


def reliability(figure: Figure, document: Document) -> None:
    """Draw mean probability against the share that is relevant, and below it how many pairs."""
    rows = (document.get("scores") or {}).get("reliability") or []
    filled = [row for row in rows if row["pairs"]]
    if not filled:
        return
    figure.set_figheight(3.9)
    curve, sizes = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    places = ([row[key] for row in filled] for key in ("mean_probability", "share_relevant"))
    curve.plot([0, 1], [0, 1], color=LIGHT["muted"], **_DASHED)
    curve.plot(*places, color=LIGHT["bars"], linewidth=1.6, marker="o", markersize=6)
    curve.set(ylim=(-0.03, 1.03), ylabel="share relevant")
    lows, pairs = [row["low"] for row in rows], [row["pairs"] for row in rows]
    bars = sizes.bar(lows, pairs, 0.92 / len(rows), align="edge", color=LIGHT["quiet"])
    sizes.bar_label(bars, fmt=_SHORT, padding=2, fontsize=10)
    sizes.margins(y=0.35)
    sizes.grid(False)
    sizes.tick_params(axis="y", labelleft=False)
    sizes.set(xlim=(-0.03, 1.03), xlabel="probability given by the model", ylabel="pairs")


def lengths(figure: Figure, document: Document) -> None:
    """Draw tokens per pair, with the 95th percentile and the length that pairs are cut to."""
    found = document.get("lengths") or {}
    edges, counts = found.get("edges"), found.get("counts") or []
    if not edges or not any(counts):
        return
    marks = {key: found[key] for key in ("p95", "max_length")
             if known(found.get(key)) and found[key] <= _NEAR * edges[-1]}  # fmt: skip
    axes, top = _axes(figure, 2.8, "pairs", "tokens per pair"), max(counts)
    axes.stairs(counts, edges, fill=True, color=LIGHT["bars"], linewidth=0)
    axes.set_ylim(0, top * (1.08 + 0.13 * len(marks)))
    middle = (edges[0] + max(edges[-1], *marks.values(), 0)) / 2
    for row, (name, place) in enumerate(marks.items()):
        colour = LIGHT["hurt" if name == "max_length" else "ink"]
        axes.axvline(place, color=colour, **({} if name == "max_length" else _DASHED))
        side, align = (-5, "right") if place > middle else (5, "left")
        axes.annotate(
            f"{name} {count(place)}", (place, top * (1.15 + 0.13 * row)), (side, 0),
            textcoords="offset points", va="center", ha=align, color=colour,
        )  # fmt: skip
    axes.xaxis.set_major_formatter(_THOUSANDS)
    _count_axis(axes)


def pareto(figure: Figure, document: Document) -> None:
    """Draw throughput against agreement of the tuned settings, the best trade-offs joined."""
    rows = [row for row in document["rows"]
            if known(row.get("kendall_tau")) and not row.get("of_batches")]  # fmt: skip
    if not rows:
        return
    axes = _axes(figure, 3.3, "Kendall’s tau", "throughput of one task slot [pairs/s]")

    def points(some: Sequence[Document]) -> tuple[list[float], list[float]]:
        return [row["pairs_per_s"] for row in some], [row["kendall_tau"] for row in some]

    front = sorted((row for row in rows if row["pareto"]), key=lambda row: row["pairs_per_s"])
    axes.plot(*points(front), color=LIGHT["helped"], linewidth=1.4, zorder=1)
    names = dict.fromkeys(row["engine"] for row in rows)
    for name, marker in zip(names, cycle("osD^vP*X"), strict=False):
        mine = [row for row in rows if row["engine"] == name]
        colours = [LIGHT["helped" if row["pareto"] else "quiet"] for row in mine]
        axes.scatter(*points(mine), s=44, marker=marker, c=colours, label=name, zorder=2)
    best = [row for row in rows if row["recommended"]]
    axes.scatter(*points(best), s=190, facecolors="none", edgecolors=LIGHT["ink"], zorder=3)
    least = ((document.get("config") or {}).get("tune") or {}).get("min_tau")
    low = min(row["kendall_tau"] for row in rows)
    if known(least) and low < least:
        axes.axhline(least, color=LIGHT["muted"], **_DASHED)
    axes.set(xlim=(0, None), ylim=(None, 1 + 0.06 * max(1 - low, 0.02)))
    figure.legend(loc="outside upper left", ncols=3, frameon=False, columnspacing=1.0)


def _axes(figure: Figure, height: float, ylabel: str, xlabel: str) -> Axes:
    figure.set_figheight(height)
    axes: Axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return axes


def _count_axis(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(_SHORT)
    axes.spines["bottom"].set_color(LIGHT["rule"])


EVALUATION: Final = (win_loss, flow, rank_changes, scores, reliability, lengths)
