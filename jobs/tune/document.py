"""What was found, as plain values: the content of tune.json, and the file that is recommended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml

from jobs.config import Config
from jobs.output.record import Stopwatch, public_config, versions
from jobs.runtime.redaction import known_secrets, masked
from jobs.scoring.token_lengths import SampledLengths
from jobs.tune.recommend import acceptable, pareto, recommend
from jobs.tune.rows import Row, make_rows
from jobs.tune.sample import Sample
from jobs.tune.settings import LENGTHS, Setting
from jobs.tune.sweep import Sweep
from udfs.checkpoint import Checkpoint

_PERCENTILES: Final = (50, 75, 90, 95, 99)
_HOUR: Final = 3600.0  # s


def make_document(
    *,
    run_id: str,
    config: Config,
    checkpoint: Checkpoint,
    device: str,
    slots: int,
    pairs: int,
    lengths: SampledLengths,
    sample: Sample,
    found: Sweep,
    watch: Stopwatch,
    spark_version: str,
) -> dict[str, Any]:
    """The content of tune.json. Holds settings and numbers, never a text."""
    measured_on = sample.first(found.pairs)
    rows = make_rows(found.settings, found.reference, measured_on)
    chosen = recommend(rows, config.tune)
    front = pareto(rows)
    for row in rows:
        row["acceptable"] = acceptable(row, config.tune)
        row["pareto"] = row in front
        row["recommended"] = row is chosen
    return {
        "run_id": run_id,
        "kind": "tune",
        "started": watch.started.isoformat(timespec="seconds"),
        "config": public_config(config),
        "model": {
            "name": masked(str(config.model.name), known_secrets(config)),
            "revision": config.model.revision,
            "digest": checkpoint.digest,
            "architecture": checkpoint.architecture,
            "parameters": checkpoint.parameters,
            "positions": checkpoint.positions,
        },
        "device": device,
        "task_slots": slots,
        "counts": {"distinct": pairs, "sampled": len(sample), "measured_on": found.pairs},
        "queries": len(set(measured_on.query_ids)),
        "labelled": measured_on.labelled,
        "lengths": _lengths(lengths, checkpoint.positions, rows, pairs, chosen),
        "reference": _described(found.settings[found.reference_at].setting),
        "reference_at": found.reference_at,
        "rows": rows,
        "recommended": chosen and recommended_keys(config, chosen),
        "rates": chosen
        and {
            key: chosen[key]
            for key in ("pairs_per_s", "tokens_per_s", "kendall_tau", "ndcg_delta", "memory_mb")
            if chosen[key] is not None
        },
        "timings": watch.timings(),
        "versions": {**versions(), "spark": spark_version},
        "mlflow_run_id": None,
    }


def recommended_keys(config: Config, chosen: Row) -> dict[str, dict[str, Any]]:
    """Sections and keys that `jobs.rerank --config` takes: what was chosen, and for which model."""
    model = {"name": config.model.name, "revision": config.model.revision}
    return {
        "model": {key: value for key, value in model.items() if value is not None}
        | {
            "backend": chosen["backend"],
            "precision": chosen["precision"],
            "max_length": chosen["max_length"],
            "truncation": config.model.truncation,
        },
        "batching": {
            "max_tokens": chosen["max_tokens"],
            "max_pairs": chosen["max_pairs"],
            "window": config.batching.window,
        },
    }


def recommended_yaml(document: Mapping[str, Any]) -> str:
    """The file, with what was measured in its head."""
    row = next(row for row in document["rows"] if row["recommended"])
    agreement = (
        [f"Kendall's tau {row['kendall_tau']:.3f}"] if row["kendall_tau"] is not None else []
    )
    if row["ndcg_delta"] is not None:
        agreement.append(f"nDCG@10 {row['ndcg_delta']:+.4f}")
    against = f" ({', '.join(agreement)} against {document['reference']})" if agreement else ""
    head = [
        f"Recommended by jobs.tune, {document['started']}, for {document['model']['name']}.",
        f"On {document['counts']['measured_on']} pairs, one task slot, {document['device']}:",
        f"{row['pairs_per_s']:.1f} pairs/s, {row['memory_mb']:,.0f} MB a worker{against}.",
        "  python -m jobs.rerank --config THIS --input.path IN --output.path OUT",
    ]
    body = yaml.safe_dump(document["recommended"], sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}\n" for line in head) + body


def _described(setting: Setting) -> str:
    return f"{setting.engine} at max_length {setting.max_length}"


def _lengths(
    lengths: SampledLengths, positions: int | None, rows: list[Row], pairs: int, chosen: Row | None
) -> dict[str, Any]:
    """Percentiles, and what each max_length cuts and costs, up to what the model can read."""
    limit = positions or LENGTHS[-1]
    tried = {row["max_length"] for row in rows} | {n for n in LENGTHS if n <= limit}
    speed = chosen["tokens_per_s"] if chosen else None
    whole = lengths.cut_at(limit).mean
    cuts = []
    for length in sorted(tried):
        cut = lengths.cut_at(length)
        cuts.append(
            {
                "max_length": length,
                "share_cut": round(cut.share, 4),
                "tokens_per_pair": round(cut.mean, 1),
                "cost": round(cut.mean / whole, 4),
                "slot_hours": round(pairs * cut.mean / speed / _HOUR, 4) if speed else None,
            }
        )
    return {
        "sampled": len(lengths.whole),
        "mean": round(float(lengths.whole.mean()), 1),
        **{f"p{percent}": round(lengths.percentile(percent), 1) for percent in _PERCENTILES},
        "max": int(lengths.whole.max()),
        "cuts": cuts,
    }
