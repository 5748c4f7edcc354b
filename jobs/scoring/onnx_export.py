"""Export a checkpoint to its ONNX copy, once on the driver, and keep it in the cache.

The copy is a folder that takes the checkpoint's place: the tokenizer's files, a graph for each
precision, and `parity.json`, which says how far its scores are from torch's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from jobs.runtime.cache import cache, cached_folder
from jobs.runtime.errors import RefusedError
from jobs.scoring.onnx_parity import compare, format_parity
from udfs.checkpoint import Checkpoint, scoring_files
from udfs.forward.onnx import graph_file, version
from udfs.spec import Precision
from udfs.weights import weight_files

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


def missing_packages() -> list[str]:
    """Return the packages of the pip extra that are not installed."""
    return [name for name in _PACKAGES if _version(name) is None]


def export(checkpoint: Checkpoint, precision: Precision) -> Checkpoint:
    """Return the copy of a checkpoint, made if it is not in the cache.

    Raises:
        RefusedError: if the model cannot be exported faithfully.
    """
    versions = ", ".join(f"{name} {_version(name)}" for name in _DECIDING)
    key = hashlib.sha256(f"{checkpoint.digest} {_EXPORTER} {versions}".encode()).hexdigest()[:32]
    runtime = f"{version()}, {key}"

    def make(folder: Path) -> None:
        folder.mkdir()
        _make(checkpoint, precision, folder, runtime)

    folder = cached_folder(cache() / "onnx" / f"{key}-{precision}", make)
    return replace(checkpoint, path=folder, runtime=runtime)


def copied_files(folder: Path) -> Iterable[Path]:
    """List the files of a copy that executors need."""
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name != PARITY)


def _make(checkpoint: Checkpoint, precision: Precision, folder: Path, runtime: str) -> None:
    """Fill a folder with the copy, compare it with torch, and print the comparison."""
    start = time.perf_counter()
    for file in set(scoring_files(checkpoint.path)) - set(weight_files(checkpoint.path)):
        shutil.copy2(file, folder)
    try:
        _trace(checkpoint, graph_file(folder, "fp32"))
        if precision == "int8":
            _quantise(graph_file(folder, "fp32"), graph_file(folder, "int8"))
        seconds = time.perf_counter() - start
        parity = compare(checkpoint, replace(checkpoint, path=folder, runtime=runtime), precision)
    except Exception as error:  # exporter and model raise of every kind
        raise RefusedError(
            f"{checkpoint.architecture} cannot be exported to ONNX ({type(error).__name__}); use "
            "model.backend=torch"
        ) from error
    sys.stdout.write(
        f"exported   to ONNX, {precision}, in {seconds:.1f} s\n{format_parity(parity)}\n"
    )
    if precision == "fp32" and not parity.max_abs_difference <= _LARGEST_DIFFERENCE:
        raise RefusedError(
            f"the ONNX copy of {checkpoint.architecture} scores by up to "
            f"{parity.max_abs_difference:.2g} otherwise than torch, more than "
            f"{_LARGEST_DIFFERENCE:g}; use model.backend=torch"
        )
    (folder / PARITY).write_text(json.dumps(asdict(parity), indent=2) + "\n", encoding="utf-8")


def _trace(checkpoint: Checkpoint, target: Path) -> None:
    """Write the float32 graph.

    With the older exporter of torch, which needs no further package. Fusing attention into one
    operator (`onnxruntime.transformers`) made the embedded model a tenth slower.
    """
    import onnx
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        str(checkpoint.path), dtype=torch.float32, attn_implementation="eager",
        local_files_only=True, use_safetensors=True,
    )  # fmt: skip
    model.eval().config.return_dict = False
    names = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    ids = torch.randint(
        model.config.vocab_size, (3, 17), generator=torch.Generator().manual_seed(0)
    )
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0

    class Named(torch.nn.Module):
        """Take the inputs by position, as the exporter gives them."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: torch.Tensor) -> Any:
            return self.model(**dict(zip(names, given, strict=True)))[0]

    with tempfile.TemporaryDirectory(dir=target.parent) as work, torch.no_grad():
        traced = f"{work}/traced.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that are constant, which they are not
            torch.onnx.export(
                Named().eval(),
                (ids, mask, torch.zeros_like(ids))[: len(names)],
                traced,
                input_names=names,
                output_names=["logits"],
                dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names}
                | {"logits": {0: "rows"}},
                opset_version=_OPSET,
                dynamo=False,
            )
        # Beyond 2 GB the exporter writes a file per weight; one beside the graph is enough.
        large = checkpoint.parameters * 4 > _LARGEST_FILE
        onnx.save_model(
            onnx.load(traced),
            str(target),
            save_as_external_data=large,
            location=f"{target.name}.data",
        )


def _quantise(source: Path, target: Path) -> None:
    """Write the graph with int8 weights and activations that are rounded as they come.

    Weights get 7 bits: with 8, sums overflow on CPUs without VNNI, and scores would depend on the
    machine. Embeddings and the head stay in float32, as logits that are merged cannot rank.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # advice about image models, on the root logger
    try:
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            use_external_data_format=source.with_name(f"{source.name}.data").exists(),
        )
    finally:
        logging.disable(logging.NOTSET)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
