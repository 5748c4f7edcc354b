"""The drawings of the tuning page: rows -> SVG. Wording is left to `tuning`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jobs.evaluation.report import words
from jobs.evaluation.report.svg import BARS, HELPED, INK, MUTED, PAPER, QUIET, draw

_MARKERS = "osD^vP*X"
_COMPACT = FuncFormatter(lambda number, _: words.compact(number))


def pareto(label: str, rows: Sequence[Mapping[str, Any]], least: float) -> Markup:
    """Throughput against agreement; the settings that none beats in both are joined.

    Args:
        label: for those who do not see it.
        rows: with pairs_per_s and kendall_tau, both known.
        least: agreement below which nothing is recommended.
    """
    names = list(dict.fromkeys(row["engine"] for row in rows))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        front = sorted((r for r in rows if r["pareto"]), key=lambda row: row["pairs_per_s"])
        axes.plot(
            [row["pairs_per_s"] for row in front], [row["kendall_tau"] for row in front],
            color=HELPED, linewidth=1.4, zorder=1,
        )  # fmt: skip
        for at, name in enumerate(names):
            part = [row for row in rows if row["engine"] == name]
            for on_front in (False, True):
                shown = [row for row in part if row["pareto"] == on_front]
                axes.scatter(
                    [row["pairs_per_s"] for row in shown], [row["kendall_tau"] for row in shown],
                    s=44, marker=_MARKERS[at % len(_MARKERS)], edgecolors=PAPER, linewidths=0.8,
                    color=HELPED if on_front else QUIET, zorder=2,
                )  # fmt: skip
            axes.scatter([], [], s=44, marker=_MARKERS[at % len(_MARKERS)], color=QUIET, label=name)
        for row in rows:
            if row["recommended"]:
                axes.scatter(
                    [row["pairs_per_s"]], [row["kendall_tau"]],
                    s=190, facecolors="none", edgecolors=INK, linewidths=1.4, zorder=3,
                )  # fmt: skip
        low = min(row["kendall_tau"] for row in rows)
        if low < least:
            axes.axhline(least, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(top=1 + 0.06 * max(1 - low, 0.02))
        axes.set_xlim(left=0)
        axes.margins(x=0.08)
        axes.set_xlabel("pairs/s of one task slot")
        axes.set_ylabel("Kendall’s tau")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(_COMPACT)
        figure.legend(
            loc="outside upper left", ncols=min(3, len(names)), frameon=False,
            handletextpad=0.2, columnspacing=1.0, labelcolor=INK,
        )  # fmt: skip

    return draw("pareto", 3.3, label, paint)


def batch_sizes(label: str, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Pairs in a batch against throughput and against the time of a batch."""
    sizes = [row["max_pairs"] for row in rows]

    def paint(figure: Figure) -> None:
        axes = figure.subplots(2, 1, sharex=True)
        for part, values, name in (
            (axes[0], [row["pairs_per_s"] for row in rows], "pairs/s"),
            (axes[1], [row["ms_per_batch"]["p50"] for row in rows], "ms per batch"),
        ):
            part.plot(
                range(len(sizes)), values,
                color=BARS, linewidth=1.6, marker="o", markersize=6, markeredgecolor=PAPER,
            )  # fmt: skip
            part.set_ylim(bottom=0, top=1.15 * max(values))
            part.set_ylabel(name)
            part.yaxis.set_major_locator(MaxNLocator(4))
            part.yaxis.set_major_formatter(_COMPACT)
        axes[1].set_xticks(range(len(sizes)), [words.count(size) for size in sizes])
        axes[1].set_xlabel("batching.max_pairs")

    return draw("batch-sizes", 3.6, label, paint)
