"""The drawings: numbers of the evaluation document -> SVG. Wording is left to `figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from jobs.evaluation.report import words
from jobs.evaluation.report.svg import BARS, HELPED, HURT, INK, MUTED, PAPER, QUIET, RULE, draw

_GAPS_UP_TO: Final = 60  # bars; more of them would be thinner than the gaps
_COMPACT: Final = FuncFormatter(lambda number, _: words.compact(number))


def win_loss(
    label: str, measure: str, differences: Sequence[float], numbers: Sequence[int]
) -> Markup:
    """Differences per query, sorted, the best first.

    Args:
        label: for those who do not see it.
        measure: its name.
        differences: descending; a sample of the queries, or all of them.
        numbers: of queries helped, hurt and tied; their sum is the length of the axis.
    """
    total = sum(numbers)
    step = total / len(differences)
    edges = [place * step for place in range(len(differences) + 1)]
    helped, hurt, tied = (words.count(number) for number in numbers)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for colour, part in (
            (HELPED, [max(0.0, value) for value in differences]),
            (HURT, [min(0.0, value) for value in differences]),
        ):
            if len(part) <= _GAPS_UP_TO:
                axes.bar(edges[:-1], part, 0.8 * step, align="edge", color=colour)
            else:
                axes.stairs(part, edges, fill=True, color=colour, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlim(0, total)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("queries, the most helped first")
        axes.set_ylabel(f"change of {measure}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: words.count(number)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(_difference))
        axes.set_title(f"▲ {helped} helped", loc="left", color=HELPED)
        axes.set_title(f"{tied} tied", loc="center", color=MUTED)
        axes.set_title(f"▼ {hurt} hurt", loc="right", color=HURT)
        axes.tick_params(axis="x", length=0)

    return draw("win-loss", 3.1, label, paint)


def flow(label: str, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Documents now among the first k, by the rank they had before."""
    names = [str(row["from"]).replace("-", "–") for row in rows]
    counts = [row["count"] for row in rows]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        bars = axes.barh(range(len(rows)), counts, 0.68, color=BARS)
        axes.set_yticks(range(len(rows)), names)
        axes.bar_label(bars, [words.count(number) for number in counts], padding=4, color=INK)
        axes.invert_yaxis()
        axes.grid(False)
        axes.margins(x=0.14)
        axes.spines["bottom"].set_visible(False)
        axes.spines["left"].set_visible(True)
        axes.tick_params(axis="x", bottom=False, labelbottom=False)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylabel("rank before")

    return draw("rank-flow", 0.7 + 0.36 * len(rows), label, paint)


def rank_changes(label: str, histogram: Sequence[Sequence[float]], width: float) -> Markup:
    """By how many ranks documents moved; positive is up."""
    lows = [low for low, _ in histogram]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        heights = [number for _, number in histogram]
        axes.bar(lows, heights, 0.92 * width, align="edge", color=BARS)
        axes.axvline(0, color=INK, linewidth=0.8)
        _counts(axes, "documents")
        reach = max(abs(min(lows)), abs(max(lows) + width))
        axes.set_xlim(-reach, reach)
        axes.set_xlabel("← down · ranks moved · up →")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return draw("rank-changes", 2.7, label, paint)


def scores_by_label(
    label: str, edges: Sequence[float], parts: Sequence[tuple[str, Sequence[int]]]
) -> Markup:
    """A histogram for each label, one below the other, each in percent of its own pairs."""
    colours = {"relevant": HELPED, "not relevant": HURT}

    def paint(figure: Figure) -> None:
        rows = figure.subplots(len(parts), 1, sharex=True, sharey=True, squeeze=False)
        for axes, (name, counts) in zip(rows[:, 0], parts, strict=True):
            total = sum(counts)
            shares = [100 * number / total for number in counts]
            axes.stairs(shares, edges, fill=True, color=colours.get(name, QUIET), linewidth=0)
            axes.set_title(f"{name}, {words.many(total, 'pair')}", loc="left", color=INK)
            axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
            axes.yaxis.set_major_locator(MaxNLocator(3))
        rows[0, 0].set_ylim(bottom=0)
        rows[-1, 0].set_xlabel("raw score [logit]")

    return draw("scores", 0.9 + 1.15 * len(parts), label, paint)


def reliability(label: str, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Mean probability against the share that is relevant, and below it how many pairs."""
    filled = [row for row in rows if row["pairs"]]

    def paint(figure: Figure) -> None:
        curve, sizes = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        curve.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        curve.plot(
            [row["mean_probability"] for row in filled],
            [row["share_relevant"] for row in filled],
            color=BARS, linewidth=1.6, marker="o", markersize=7, markeredgecolor=PAPER,
        )  # fmt: skip
        curve.set_ylim(-0.03, 1.03)
        curve.set_ylabel("share relevant")
        lows = [row["low"] for row in rows]
        widths = [0.92 * (row["high"] - row["low"]) for row in rows]
        bars = sizes.bar(lows, [row["pairs"] for row in rows], widths, align="edge", color=QUIET)
        texts = [words.compact(row["pairs"]) for row in rows]
        sizes.bar_label(bars, texts, padding=2, fontsize=10, color=INK)
        sizes.margins(y=0.35)
        sizes.grid(False)
        sizes.set_ylabel("pairs")
        sizes.tick_params(axis="y", labelleft=False)
        sizes.set_xlabel("probability given by the model")
        sizes.set_xlim(-0.03, 1.03)

    return draw("reliability", 3.9, label, paint)


def lengths(
    label: str,
    edges: Sequence[float],
    counts: Sequence[int],
    marks: Sequence[tuple[str, float, bool]],
) -> Markup:
    """Tokens per pair, with marked lengths: (name, tokens, whether it is a limit)."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.stairs(counts, edges, fill=True, color=BARS, linewidth=0)
        _counts(axes, "pairs")
        top = max(counts)
        axes.set_ylim(0, top * (1.08 + 0.13 * len(marks)))
        ends = [*edges, *(place for _, place, _ in marks)]
        middle = (min(ends) + max(ends)) / 2
        for row, (name, place, limit) in enumerate(marks):
            colour, style = (HURT, "solid") if limit else (INK, (0, (4, 3)))
            axes.axvline(place, color=colour, linewidth=1.4, linestyle=style)
            left = place > middle
            axes.annotate(
                f"{name} {words.count(place)}", (place, top * (1.15 + 0.13 * row)),
                (-5 if left else 5, 0), textcoords="offset points", va="center",
                ha="right" if left else "left", color=colour,
            )  # fmt: skip
        axes.set_xlabel("tokens per pair")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: words.count(number)))

    return draw("lengths", 2.8, label, paint)


def _counts(axes: Axes, name: str) -> None:
    axes.set_ylabel(name)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(_COMPACT)
    axes.spines["bottom"].set_color(RULE)


def _difference(number: float, _: int | None) -> str:
    return f"{number:+.3g}".replace("-", "−") if number else "0"
