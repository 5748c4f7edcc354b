"""Measure how far the scores of an ONNX copy are from torch's, on the embedded sample."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from ir_measures import Qrel, ScoredDoc, calc_aggregate, nDCG

import jobs.demo
from udfs.checkpoint import Checkpoint
from udfs.devices import process_slot
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import Precision, ScorerSpec
from udfs.templates import parse_template

_LENGTH: Final = 512  # tokens


@dataclass(frozen=True)
class Parity:
    """Scores of the graph against torch's in float32, on the embedded sample.

    Attributes:
        pairs: compared.
        max_abs_difference: largest difference of a logit.
        mean_abs_difference: mean difference of the logits.
        ndcg_torch: nDCG@10 of the sample in torch.
        ndcg_onnx: nDCG@10 of the sample by the graph.
    """

    pairs: int
    max_abs_difference: float
    mean_abs_difference: float
    ndcg_torch: float
    ndcg_onnx: float


def compare(original: Checkpoint, copy: Checkpoint, precision: Precision) -> Parity:
    """Score the embedded sample with both."""
    lines = (jobs.demo.FOLDER / "sample.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    in_torch = _logits(rows, original, precision="fp32")
    in_onnx = _logits(rows, copy, precision=precision, backend="onnxruntime")
    difference = np.abs(in_torch - in_onnx)
    return Parity(
        pairs=len(rows),
        max_abs_difference=float(difference.max()),
        mean_abs_difference=float(difference.mean()),
        ndcg_torch=_ndcg(rows, in_torch),
        ndcg_onnx=_ndcg(rows, in_onnx),
    )


def format_parity(parity: Parity) -> str:
    """Return the comparison for a terminal."""
    return (
        f"parity     with torch fp32 on {parity.pairs} pairs: logits differ by at most "
        f"{parity.max_abs_difference:.2g}, on average {parity.mean_abs_difference:.2g}\n"
        f"           nDCG@10 {parity.ndcg_torch:.4f} in torch, {parity.ndcg_onnx:.4f} here "
        f"({parity.ndcg_onnx - parity.ndcg_torch:+.4f})"
    )


def _logits(rows: list[dict[str, Any]], checkpoint: Checkpoint, **fields: Any) -> Any:
    """float32[N]"""
    template = parse_template("{title}\n{body}")
    spec = ScorerSpec(
        str(checkpoint.path), checkpoint.digest, runtime=checkpoint.runtime, device="cpu",
        max_length=min(_LENGTH, checkpoint.positions or _LENGTH), **fields,
    )  # fmt: skip
    scorer = Scorer.load(checkpoint.path, spec, process_slot())
    docs = [template.render(row) or "" for row in rows]
    return scorer.score([row["query"] for row in rows], docs).logit


def _ndcg(rows: list[dict[str, Any]], logits: Any) -> float:
    measure = nDCG @ 10
    ids = [(row["query_id"], row["doc_id"]) for row in rows]
    qrels = [Qrel(*pair, int(row["label"])) for pair, row in zip(ids, rows, strict=True)]
    run = [ScoredDoc(*pair, float(logit)) for pair, logit in zip(ids, logits, strict=True)]
    return float(calc_aggregate([measure], qrels, run)[measure])
