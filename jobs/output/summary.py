"""What the terminal shows: the closing summary, and the answer to `--dry-run`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.runtime.redaction import masked

_SIGNIFICANT: Final = 0.05  # of p after Holm's correction
_PRICES: Final = (("ms per pair", "ms_per_pair"), ("cost", "cost"))
_OVERFLOW: Final = 0.01  # share of pairs, from which on half precision does not pay
_ALWAYS: Final = ("input", "ranked", "distinct", "from store", "scored", "to score", "tokens")


def closing_summary(
    record: Mapping[str, Any], document: Mapping[str, Any] | None, places: Mapping[str, str]
) -> str:
    """Return counts, rates and where the files are, in a dozen lines."""
    counts, rates, memory = record["counts"], record["rates"], record.get("memory") or {}
    max_length = record["config"]["model"]["max_length"]
    spent, long = record.get("remote") or {}, record.get("passages") or {}
    known = [name for name in ("units", "tokens") if spent.get(name)]
    cost = ", ".join(f"{spent[name]:,.0f} {name}" for name in known)
    if spent.get("cost"):
        cost += f", for {spent['cost']:,.2f}"
    reasons = ", ".join(f"{count:,} {why}" for why, count in record["reject_reasons"].items())
    speed = f", {rates['pairs_per_s']:,.1f} pairs/s" if rates["pairs_per_s"] else ""
    on_gpu = memory.get("device_mb")
    device = "" if on_gpu is None else f", {on_gpu:,.0f} MB on a GPU"
    peak = round(memory.get("process_mb", 0))
    lines = _counted(
        ("input", counts["input"], "rows"),
        ("ranked", counts["ranked"], f"rows of {counts['queries']:,} queries"),
        ("cut", counts["cut"], "rows, by top_k or min_score"),
        ("collapsed", counts["collapsed"], "rows, equal to another"),
        ("rejected", counts["rejected"], f"rows, {reasons}"),
        ("distinct", counts["distinct"], "pairs"),
        ("from store", counts["from_store"], "pairs"),
        ("scored", counts["scored"], f"pairs{speed}"),
        ("requests", spent.get("requests", 0), cost),
        ("memory", peak, f"MB, largest process that scored{device}"),
        (
            "long",
            long.get("long", 0),
            f"documents of several passages; {long.get('top1_changed', 0):,} queries "
            "have another first document by it",
        ),
        ("truncated", counts["truncated"], f"pairs, cut at {max_length:,} tokens"),
    )
    lines += _notes(record)
    if document:
        lines += ["", evaluation_summary(document, places)]
    else:
        lines += _files(places)
    return "\n".join(lines)


def _notes(record: Mapping[str, Any]) -> list[str]:
    """Return what changed, the grades that were made, and warnings."""
    rates, lines = record["rates"], []
    if rates["top1_change_rate"] is not None:
        lines.append(
            f"top-1      {rates['top1_change_rate']:>12.1%} of queries have a new first document"
        )
    if (lost := rates["rescored_share"] or 0.0) > _OVERFLOW:
        lines.append(
            f"warning: {record['model']['precision']} gave no number for {lost:.1%} of the pairs "
            "of a process, which were scored again in fp32; set model.precision to bf16"
        )
    if labels := record.get("labels"):
        shares = ", ".join(f"{grade}: {share:.1%}" for grade, share in labels["shares"].items())
        lines.append(f"{labels['column']:<10} {shares}")
        lines += [f"warning: {sentence}" for sentence in labels["warnings"]]
    return lines


def evaluation_summary(document: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """Return what `jobs.evaluate` shows: measures, comparison, gate, and where the files are."""
    parts = (_measures, _baseline, _systems, _gate)
    lines = [line for part in parts for line in part(document)]
    warnings = [f"warning: {sentence}" for sentence in document.get("warnings") or []]
    return "\n".join([*lines, *warnings, *_files(places)])


def fuse_summary(counts: Mapping[str, int], names: Sequence[str], places: Mapping[str, str]) -> str:
    """Return what `jobs.fuse` shows: counts, and where the files are."""
    lines = _counted(
        ("input", counts["input"], f"rows of {', '.join(names)}"),
        ("merged", counts["merged"], "rows, with another of the same document"),
        ("cut", counts["cut"], "rows, by top_k or min_score"),
        ("ranked", counts["ranked"], f"rows of {counts['queries']:,} queries"),
    )
    return "\n".join([*lines, *_files(places)])


def dry_run_summary(
    counts: Mapping[str, int], fingerprint: str, lengths: Mapping[str, Any] | None = None,
    cost: tuple[float, str] | None = None, *, max_length: int = 0,
) -> str:  # fmt: skip
    """Return what a run would do.

    Args:
        counts: `input`, `collapsed`, `rejected`, `distinct` and `from_store`.
        fingerprint: of the scores.
        lengths: of `sampled` pairs: `percentiles` [tokens], the `mean` after the cut [tokens] and
            the share `cut`.
        cost: of a remote model: about how many units, and what they are.
        max_length: where pairs are cut [tokens].
    """
    missing = counts["distinct"] - counts["from_store"]
    share = counts["from_store"] / counts["distinct"] if counts["distinct"] else 0.0
    lines = _counted(
        ("input", counts["input"], "rows"),
        ("collapsed", counts["collapsed"], "rows, equal to another"),
        ("rejected", counts["rejected"], "rows"),
        ("distinct", counts["distinct"], "pairs"),
        ("from store", counts["from_store"], f"pairs ({share:.1%})"),
        ("to score", missing, "pairs"),
    )
    if cost is not None:
        lines += _counted(("to pay", round(cost[0]), f"{cost[1]}, estimated"))
    if lengths is not None:
        lines += _counted(("tokens", round(lengths["mean"] * missing), "to score, estimated"))
        percentiles = "   ".join(f"p{p} {n:,.0f}" for p, n in lengths["percentiles"].items())
        lines += [
            "",
            f"lengths of {lengths['sampled']:,} sampled pairs [tokens]:",
            f"  {percentiles}",
            f"  {lengths['cut']:.1%} would be cut at model.max_length={max_length}",
        ]
    lines += ["", f"fingerprint {fingerprint}", "nothing was scored or written (--dry-run)"]
    return "\n".join(lines)


def _measures(document: Mapping[str, Any]) -> list[str]:
    """Return first stage and reranked side by side, with Holm's p and what the candidates allow."""
    if not document.get("reranked"):
        return []
    title = f"over {document['queries']:,} queries"
    if document["first_stage"] is None:
        after = document["reranked"].items()
        return [f"{title:<20}   after", *(f"{name:<20}  {value:.4f}" for name, value in after)]
    lines = [f"{title:<20}  before   after   change  p (Holm)  ceiling"]
    for name, before in document["first_stage"].items():
        after, delta = document["reranked"][name], document["delta"][name]
        test, best = (document["tests"] or {}).get(name), document["ceiling"].get(name)
        lines.append(
            f"{name:<20}  {before:.4f}  {after:.4f}  {delta:+.4f}  "
            f"{_fixed(test and test['p_holm']):>8}  {_fixed(best):>7}"
        )
    counted = {"queries_unanswered": "without a candidate, counted 0",
               "queries_without_relevant": "without a relevant document, counted 0",
               "queries_only_in_run": "without a judgement, left out"}  # fmt: skip
    lines += [f"  {document[k]:,} queries {what}" for k, what in counted.items() if document.get(k)]
    return lines + [f"  note: {note}" for note in document.get("notes") or []]


def _baseline(document: Mapping[str, Any]) -> list[str]:
    """Return the comparison with the baseline, over the queries that both have."""
    found = document.get("baseline")
    if not found:
        return []
    alone = [(found.get("only_here"), "only here"), (found.get("only_baseline"), "only there")]
    rest = ", ".join(f"{count:,} {where}" for count, where in alone if count)
    title = f"{found['name']}, {found['queries']:,} shared queries{f' ({rest})' if rest else ''}"
    lines = ["", f"against {title}"]
    for name, delta in found["delta"].items():
        before, test = found["values"][name], (found["tests"] or {}).get(name)
        p = f"  {test['p_holm']:>8.4f}" if test else ""
        lines.append(f"{name:<20}  {before:.4f}  {before + delta:.4f}  {delta:+.4f}{p}")
    return lines


def _systems(document: Mapping[str, Any]) -> list[str]:
    """Return models x measures, where there are more than the two orders of one table."""
    systems, names = document.get("systems") or [], document.get("measures") or []
    if len(systems) < 3:
        return []
    width = max(len(row["name"]) for row in systems)
    further = [(title, key) for title, key in _PRICES if any(row.get(key) for row in systems)]
    titles = [*names, *(title for title, _ in further)]
    lines = ["", " " * width + "".join(f"  {name:>14}" for name in titles)]
    for row in systems:
        cells = []
        for name in names:
            versus = (row["versus"] or {}).get(name)
            star = "*" if versus and versus["p_holm"] < _SIGNIFICANT else " "
            cells.append(f"  {_fixed(row['values'].get(name)) + star:>14}")
        cells += ["  " + _fixed(row.get(key), form=",.2f").rjust(13) + " " for _, key in further]
        mark = "" if row["versus"] is not None else "  (baseline)"
        lines.append(f"{row['name']:<{width}}{''.join(cells)}{mark}")
    return [*lines, f"* differs from the baseline, p < {_SIGNIFICANT} after Holm"]


def _gate(document: Mapping[str, Any]) -> list[str]:
    """Return each rule with its numbers."""
    gate = document.get("gate")
    if not gate:
        return []
    lines = ["", f"gate {'passed' if gate['passed'] else 'NOT PASSED'}"]
    for row in gate["rules"]:
        mark, value = "ok  " if row["passed"] else "FAIL", _fixed(row["value"], "unknown")
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"  {mark} {row['rule']}: {value}{note}")
    return lines


def _fixed(value: float | None, otherwise: str = "-", form: str = ".4f") -> str:
    return otherwise if value is None else f"{value:{form}}"


def _files(places: Mapping[str, str]) -> list[str]:
    return ["", *(f"{name:<10} {masked(path)}" for name, path in places.items())]


def _counted(*rows: tuple[str, int, str]) -> list[str]:
    """Lay out name, count and unit; of most names only where there is something to count."""
    return [
        f"{name:<10} {count:>12,} {what}" for name, count, what in rows if count or name in _ALWAYS
    ]
