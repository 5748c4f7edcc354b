"""How far the scores of an ONNX copy are from torch's, on the embedded sample."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

import jobs.demo
from jobs.evaluation.agreement import ndcg
from udfs.checkpoint import Checkpoint
from udfs.devices import process_slot
from udfs.encoding.pairs import PairEncoder
from udfs.forward.base import load_model
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
    template = parse_template("{title}\n{body}")
    queries, docs = [row["query"] for row in rows], [template.render(row) or "" for row in rows]
    length = min(_LENGTH, original.positions or _LENGTH)
    slot = process_slot()

    def logits(checkpoint: Checkpoint, precision: Precision, **changes: Any) -> Any:
        spec = ScorerSpec(
            str(checkpoint.path), checkpoint.digest, max_length=length, precision=precision,
            runtime=checkpoint.runtime, **changes,
        )  # fmt: skip
        model = load_model(checkpoint.path, spec, slot, precision)
        return Scorer(PairEncoder.load(checkpoint.path, spec), model, spec).score(queries, docs)

    ids, names = [row["query_id"] for row in rows], [row["doc_id"] for row in rows]
    grades = np.array([row["label"] for row in rows], np.float64)
    torch_logit = logits(original, "fp32").logit
    onnx_logit = logits(copy, precision, backend="onnxruntime").logit
    apart = np.abs(torch_logit - onnx_logit)
    return Parity(
        pairs=len(rows),
        max_abs_difference=float(apart.max()),
        mean_abs_difference=float(apart.mean()),
        ndcg_torch=ndcg(ids, names, torch_logit, grades) or 0.0,
        ndcg_onnx=ndcg(ids, names, onnx_logit, grades) or 0.0,
    )


def described(parity: Parity) -> str:
    """The comparison for a terminal."""
    return (
        f"parity     with torch fp32 on {parity.pairs} pairs: logits differ by at most "
        f"{parity.max_abs_difference:.2g}, on average {parity.mean_abs_difference:.2g}\n"
        f"           nDCG@10 {parity.ndcg_torch:.4f} in torch, {parity.ndcg_onnx:.4f} here "
        f"({parity.ndcg_onnx - parity.ndcg_torch:+.4f})"
    )
