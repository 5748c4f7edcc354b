"""Lay out what was found: tune.json, the recommended file, and the summary for a terminal."""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
import yaml

from jobs.config import Config
from jobs.scoring.token_lengths import SampledLengths
from jobs.tune.settings import LENGTHS, setting_of
from jobs.tune.sweep import Row, pareto, recommend

_PERCENTILES: Final = (50, 75, 90, 95, 99)
_RATES: Final = ("pairs_per_s", "tokens_per_s", "kendall_tau", "ndcg_delta", "memory_mb")
_ORDER: Final = ("of_batches", "backend", "precision", "max_length", "max_tokens", "max_pairs")
_COLUMNS: Final = {
    "engine": "engine", "max_length": "length", "max_tokens": "tokens", "max_pairs": "pairs",
    "runs": "runs", "pairs_per_s": "pairs/s", "ms_per_pair.p50": "ms p50",
    "ms_per_pair.p95": "p95", "memory_mb": "MB", "device_memory_mb": "GPU MB",
    "kendall_tau": "tau", "ndcg": "nDCG@10", "ndcg_delta": "delta", "outcome": "",
}  # fmt: skip
_HOUR: Final = 3600.0  # s


def make_document(
    record: Mapping[str, Any], config: Config, lengths: SampledLengths, rows: list[Row], at: int
) -> dict[str, Any]:
    """Return the content of tune.json: settings and numbers, never a text.

    `record` is what is known without the measuring, `at` the index of the row that the others are
    compared with.
    """
    best, front = recommend(rows, config.tune), pareto(rows)
    chosen = best[0] if best else None
    for row in rows:
        row |= {"acceptable": row in best, "pareto": row in front, "recommended": row is chosen}
    reference = setting_of(rows[at])
    positions, distinct = record["model"]["positions"], record["counts"]["distinct"]
    return {
        **record,
        "lengths": _lengths(lengths, positions, rows, distinct, chosen),
        "reference": f"{reference.engine} at max_length {reference.max_length}",
        "reference_at": at,
        "rows": rows,
        "recommended": chosen and _sections(config, chosen),
        "rates": chosen and {key: chosen[key] for key in _RATES if chosen[key] is not None},
    }


def _lengths(
    lengths: SampledLengths, positions: int | None, rows: list[Row], pairs: int, best: Row | None
) -> dict[str, Any]:
    """Return percentiles, and what each max_length up to the model's positions cuts and costs."""
    limit = positions or LENGTHS[-1]
    speed = best["tokens_per_s"] if best else None
    whole = lengths.cut_at(limit).mean
    tried = {row["max_length"] for row in rows} | {n for n in LENGTHS if n <= limit}
    return {
        "sampled": len(lengths.whole),
        "mean": round(float(lengths.whole.mean()), 1),
        **{f"p{percent}": round(lengths.percentile(percent), 1) for percent in _PERCENTILES},
        "max": int(lengths.whole.max()),
        "cuts": [
            {
                "max_length": cut.max_length,
                "share_cut": round(cut.share, 4),
                "tokens_per_pair": round(cut.mean, 1),
                "cost": round(cut.mean / whole, 4),
                "slot_hours": round(pairs * cut.mean / speed / _HOUR, 4) if speed else None,
            }
            for cut in map(lengths.cut_at, sorted(tried))
        ],
    }


def _sections(config: Config, chosen: Row) -> dict[str, dict[str, Any]]:
    """Return the sections that `jobs.rerank --config` takes: model and setting."""
    model = config.model
    name = {"name": model.name} | ({"revision": model.revision} if model.revision else {})
    measured = {key: chosen[key] for key in ("backend", "precision", "max_length")}
    sizes = {key: chosen[key] for key in ("max_tokens", "max_pairs")}
    more = ("kind", "label", "template", "query_instruction", "doc_instruction")
    reads = model.model_dump(include={*more}, exclude_defaults=True)
    return {
        "model": {**name, **measured, "truncation": model.truncation, **reads},
        "batching": {**sizes, "window": config.batching.window},
    }


def recommended_yaml(document: Mapping[str, Any]) -> str:
    """Return the recommended file, with what was measured in its head."""
    row = next(row for row in document["rows"] if row["recommended"])
    tau, delta = row["kendall_tau"], row["ndcg_delta"]
    agreement = [] if tau is None else [f"Kendall's tau {tau:.3f}"]
    agreement += [] if delta is None else [f"nDCG@10 {delta:+.4f}"]
    against = f" ({', '.join(agreement)} against {document['reference']})" if agreement else ""
    head = [
        f"Recommended by jobs.tune, {document['started']}, for {document['model']['name']}.",
        f"On {document['counts']['measured_on']} pairs, one task slot, {document['device']}:",
        f"{row['pairs_per_s']:.1f} pairs/s, {row['memory_mb']:,.0f} MB a worker{against}.",
        "  python -m jobs.rerank --config YOURS --config THIS --input.path IN --output.path OUT",
    ]
    body = yaml.safe_dump(document["recommended"], sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}\n" for line in head) + body


def closing_summary(document: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Return lengths, all settings, the recommended one, and where the files are."""
    lengths = document["lengths"]
    percentiles = [*(f"p{percent}" for percent in _PERCENTILES), "max"]
    recommended = [
        f"recommended: {section}.{key} {value}"
        for section, content in (document["recommended"] or {}).items()
        for key, value in content.items()
    ] or ["no setting can be recommended; see tune.min_tau and tune.max_loss"]
    table = pd.json_normalize(document["rows"]).sort_values(list(_ORDER))
    table = table.reindex(columns=list(_COLUMNS)).rename(columns=_COLUMNS)
    table = table.dropna(axis="columns", how="all")
    return "\n".join(
        [
            f"lengths of {lengths['sampled']:,} sampled pairs [tokens]:",
            "  " + "   ".join(f"{key} {lengths[key]:,.0f}" for key in percentiles),
            *(
                f"  max_length {cut['max_length']:>5,}: {cut['share_cut']:6.1%} cut, "
                f"{cut['cost']:6.1%} of the tokens"
                for cut in lengths["cuts"]
            ),
            "",
            f"measured on {document['counts']['measured_on']:,} pairs of {document['queries']:,} "
            f"queries, one task slot, {document['device']}; agreement with "
            f"{document['reference']}:",
            table.to_string(index=False, float_format="{:,.3f}".format, na_rep="-"),
            "",
            *recommended,
            "",
            *(f"{name:<11} {file}" for name, file in files.items()),
        ]
    )
