"""Export a checkpoint to its ONNX copy, once on the driver, and keep it in the cache.

The copy is a folder that takes the checkpoint's place: the tokenizer's files, a graph for each
precision, and `parity.json`, which says how far its scores are from torch's.
"""

import hashlib
import json
import logging
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from ir_measures import calc_aggregate, nDCG

import jobs.demo
from jobs.config import ModelConfig
from jobs.runtime.cache import cache, cached_folder
from jobs.runtime.errors import RefusedError
from udfs.checkpoint import Checkpoint, scoring_files, weight_files
from udfs.devices import TaskSlot
from udfs.forward.onnx import REMEDY, graph_file, version
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import Precision, ScorerSpec

PARITY: Final = "parity.json"
# Raise it whenever the graphs made here change.
_EXPORTER: Final = 1
_PACKAGES: Final = ("onnxruntime", "onnx")
# Packages whose versions decide what a graph looks like and how it is computed.
_DECIDING: Final = ("torch", "transformers", "onnx", "onnxruntime")
_OPSET: Final = 17
_LARGEST_FILE: Final = 1_500_000_000  # bytes; protobuf ends at 2 GB, beyond it weights lie beside
# Of a float32 logit. A graph that is further from torch is not the same model.
_LARGEST_DIFFERENCE: Final = 1e-3
_PARITY_LENGTH: Final = 512  # tokens


def missing_packages() -> list[str]:
    """Return the packages of the pip extra that are not installed."""
    return [name for name in _PACKAGES if version(name) is None]


def refuse_missing_packages(backend: str) -> None:
    """Check that this machine has what a backend needs; torch is a dependency of the project."""
    if backend == "onnxruntime" and (missing := missing_packages()):
        raise RefusedError(
            f"model.backend=onnxruntime needs {' and '.join(missing)}, not installed here; {REMEDY}"
        )


def for_backend(config: ModelConfig, checkpoint: Checkpoint) -> Checkpoint:
    """Return what the backend runs: the checkpoint itself, or its copy for ONNX Runtime."""
    if config.backend != "onnxruntime":
        return checkpoint
    return export(checkpoint, "int8" if config.precision == "int8" else "fp32")


def export(checkpoint: Checkpoint, precision: Precision) -> Checkpoint:
    """Return the copy of a checkpoint, made if it is not in the cache."""
    if not checkpoint.plain:
        raise RefusedError(
            f"model.backend=onnxruntime runs classifiers with one logit, and {checkpoint.path} "
            "holds another kind of model; use model.backend=torch"
        )
    versions = ", ".join(str(version(name)) for name in _DECIDING)
    key = hashlib.sha256(f"{checkpoint.digest} {_EXPORTER} {versions}".encode()).hexdigest()[:32]
    runtime = f"{version()}, {key}"

    def make(folder: Path) -> None:
        folder.mkdir()
        _make(checkpoint, precision, replace(checkpoint, path=folder, runtime=runtime))

    folder = cached_folder(cache() / "onnx" / f"{key}-{precision}", make)
    return replace(checkpoint, path=folder, runtime=runtime)


def _make(checkpoint: Checkpoint, precision: Precision, copy: Checkpoint) -> None:
    """Fill the folder of the copy, compare it with torch, and print the comparison."""
    start, folder = time.perf_counter(), copy.path
    for file in set(scoring_files(checkpoint.path)) - set(weight_files(checkpoint.path)):
        shutil.copy2(file, folder)
    try:
        _write_graph(checkpoint, graph_file(folder, "fp32"))
        parity = exact = _compare(checkpoint, copy, "fp32")
        if precision == "int8":
            _quantise(graph_file(folder, "fp32"), graph_file(folder, "int8"))
            parity = _compare(checkpoint, copy, precision)
        seconds = time.perf_counter() - start
    except Exception as error:  # exporter and model raise of every kind
        raise RefusedError(
            f"{checkpoint.architecture} cannot be exported to ONNX ({type(error).__name__}); use "
            "model.backend=torch"
        ) from error
    apart, ndcg, ndcg_here = (parity[k] for k in ("max_abs_difference", "ndcg_torch", "ndcg_onnx"))
    sys.stdout.write(
        f"exported   to ONNX, {precision}, in {seconds:.1f} s\n"
        f"parity     with torch fp32 on {parity['pairs']} pairs: logits differ by at most "
        f"{apart:.2g}, on average {parity['mean_abs_difference']:.2g}\n"
        f"           nDCG@10 {ndcg:.4f} in torch, {ndcg_here:.4f} here ({ndcg_here - ndcg:+.4f})\n"
    )
    if not (most := exact["max_abs_difference"]) <= _LARGEST_DIFFERENCE:
        raise RefusedError(
            f"the ONNX copy of {checkpoint.architecture} scores by up to {most:.2g} otherwise "
            f"than torch, more than {_LARGEST_DIFFERENCE:g}; use model.backend=torch"
        )
    (folder / PARITY).write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")


def _write_graph(checkpoint: Checkpoint, target: Path) -> None:
    """Write the float32 graph, with weights in one file beside it if they are large."""
    import onnx

    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        traced = f"{work}/traced.onnx"
        _trace(checkpoint, traced)
        # Beyond 2 GB the exporter writes a file per weight; one beside the graph is enough.
        large = checkpoint.parameters * 4 > _LARGEST_FILE
        graph, beside = onnx.load(traced), f"{target.name}.data"
        onnx.save_model(graph, str(target), save_as_external_data=large, location=beside)


def _trace(checkpoint: Checkpoint, target: str) -> None:
    """Trace the model with the older exporter of torch, which needs no further package.

    Fusing attention into one operator (`onnxruntime.transformers`) made the embedded model a tenth
    slower.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        str(checkpoint.path), dtype=torch.float32, attn_implementation="eager",
        local_files_only=True, use_safetensors=True,
    )  # fmt: skip
    model.config.return_dict = False
    names = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    seeded = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (3, 17), generator=seeded)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0

    by_name = model.forward
    # The exporter gives the inputs by position.
    model.forward = lambda *given: by_name(**dict(zip(names, given, strict=True)))[0]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that are constant, which they are not
        torch.onnx.export(
            model.eval(), (ids, mask, torch.zeros_like(ids))[: len(names)], target,
            input_names=names, output_names=["logits"], opset_version=_OPSET, dynamo=False,
            dynamic_axes={"logits": {0: "rows"}} | {key: {0: "rows", 1: "tokens"} for key in names},
        )  # fmt: skip


def _quantise(source: Path, target: Path) -> None:
    """Write the graph with int8 weights and activations that are rounded as they come.

    Weights get 7 bits: with 8, sums overflow on CPUs without VNNI, and scores would depend on the
    machine. Embeddings and the head stay in float32, as logits that are merged cannot rank.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # advice about image models, on the root logger
    try:
        quantize_dynamic(
            str(source), str(target), op_types_to_quantize=["MatMul"], per_channel=True,
            weight_type=QuantType.QInt8, reduce_range=True,
            use_external_data_format=source.with_name(f"{source.name}.data").exists(),
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)


def _compare(original: Checkpoint, copy: Checkpoint, precision: Precision) -> dict[str, Any]:
    """Score the embedded sample with torch in float32 and with the copy; return what is apart."""
    ids = {"query_id": str, "doc_id": str}
    rows = pd.read_json(jobs.demo.FOLDER / "sample.jsonl", lines=True, dtype=ids)
    in_torch = _logits(rows, original, precision="fp32")
    in_onnx = _logits(rows, copy, precision=precision, backend="onnxruntime")
    difference, measure = np.abs(in_torch - in_onnx), nDCG @ 10
    qrels = rows.rename(columns={"label": "relevance"})
    runs = (rows.assign(score=logits) for logits in (in_torch, in_onnx))
    ndcg_torch, ndcg_onnx = (calc_aggregate([measure], qrels, run)[measure] for run in runs)
    return {
        "pairs": len(rows),
        "max_abs_difference": float(difference.max()),
        "mean_abs_difference": float(difference.mean()),
        "ndcg_torch": float(ndcg_torch),
        "ndcg_onnx": float(ndcg_onnx),
    }


def _logits(rows: pd.DataFrame, checkpoint: Checkpoint, **fields: Any) -> Any:
    """float32[N]"""
    spec = ScorerSpec(
        str(checkpoint.path), checkpoint.digest, runtime=checkpoint.runtime, device="cpu",
        max_length=min(_PARITY_LENGTH, checkpoint.positions or _PARITY_LENGTH), **fields,
    )  # fmt: skip
    docs = (rows["title"].fillna("") + "\n" + rows["body"]).str.removeprefix("\n")
    scorer = Scorer.load(checkpoint.path, spec, TaskSlot())
    return scorer.score(rows["query"].tolist(), docs.tolist()).logit
