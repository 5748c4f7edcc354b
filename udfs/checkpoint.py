"""What a model folder holds, found out without running or unpickling anything in it.

Standard library only: the driver looks at a checkpoint before torch is imported.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Readers of these formats unpickle, and unpickling can run code (CVE-2025-32434).
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Files that take part in a score. Anything else (cards, images, ONNX exports) does not.
_SCORING_FILES: Final = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model",
    "spiece.model", "tokenizer.model", "model.safetensors.index.json",
)  # fmt: skip
_LARGEST_HEADER: Final = 100_000_000  # bytes; the limit of the safetensors format
# The first positions of RoBERTa's table belong to padding: fairseq counts from pad_token_id + 1.
_OFFSET_POSITIONS: Final = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")


class CheckpointError(ValueError):
    """A model folder that must not or cannot be scored with; `findings` has every reason."""

    def __init__(self, findings: list[str]) -> None:
        """Keep the findings as a list."""
        self.findings = findings
        super().__init__("; ".join(findings))


@dataclass(frozen=True)
class Checkpoint:
    """A sequence-classification checkpoint that passed every check.

    Attributes:
        path: its folder.
        digest: SHA-256 [64 hex digits] over names and contents of the files that take part in a
            score.
        architecture: class named in config.json.
        positions: longest input the position table holds [tokens], or None if it has no limit.
        parameters: numbers in the weight files.
        runtime: where `path` is a backend's own copy of the model: what made it and runs it.
    """

    path: Path
    digest: str
    architecture: str
    positions: int | None
    parameters: int
    runtime: str = ""


def inspect_checkpoint(path: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Check a folder and read what a job has to know about it.

    Raises:
        CheckpointError: with every reason why this folder cannot be used.
    """
    if not path.is_dir():
        raise CheckpointError([f"model folder {path} does not exist; check model.name"])
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError
    except OSError:
        raise CheckpointError([f"{path} has no config.json; name a Hugging Face folder"]) from None
    except ValueError:
        raise CheckpointError([f"{path}/config.json is not a JSON object; copy it anew"]) from None
    findings = _check_config(config, trust_remote_code) + _check_beside(path, trust_remote_code)
    tensors, weight_findings = _read_weights(path)
    findings += weight_findings
    if tensors and not weight_findings:
        findings += _check_head(tensors)
    if not any((path / name).is_file() for name in _SCORING_FILES[1:-1]):
        findings.append(f"{path} has no tokenizer files; save the tokenizer beside the model")
    try:
        digest = digest_of(path)
    except OSError as error:
        findings.append(f"{path} cannot be read whole ({error.strerror}); copy it anew")
    if findings:
        raise CheckpointError(findings)
    return Checkpoint(
        path=path,
        digest=digest,
        architecture=str(config["architectures"][0]),
        positions=_positions(config),
        parameters=sum(_size(shape) for shape in tensors.values()),
    )


def _check_config(config: dict[str, Any], trust_remote_code: bool) -> list[str]:
    findings = []
    architectures = config.get("architectures") or ["none"]
    if not str(architectures[0]).endswith("ForSequenceClassification"):
        findings.append(
            f"config.json names the architecture {architectures[0]}; a cross-encoder is a "
            "...ForSequenceClassification with one label"
        )
    labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    if labels != 1:
        findings.append(f"the model has {labels} labels; a cross-encoder has one logit")
    asked = sorted(set(_code_keys(config)))
    if asked and not trust_remote_code:
        findings.append(
            f"config.json asks for code of its own ({', '.join(asked)}); choose another "
            "checkpoint, or read the code and set model.trust_remote_code"
        )
    return findings


def _code_keys(content: Any) -> Iterator[str]:
    """Keys, at any depth, that make transformers fetch or run code (CVE-2026-4372)."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "auto_map" or (key.startswith("_") and key.endswith("_internal")):
                yield key
            yield from _code_keys(value)
    elif isinstance(content, list):
        for value in content:
            yield from _code_keys(value)


def _check_beside(path: Path, trust_remote_code: bool) -> list[str]:
    """Files beside config.json that would bring in code, or weights nobody has checked."""
    findings = []
    if (path / "adapter_config.json").exists():
        findings.append(
            f"{path} holds adapter_config.json, which has weights loaded from another place; merge "
            "the adapter into its model and save that"
        )
    try:
        content = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except OSError:
        return findings
    except ValueError:
        return [*findings, f"{path}/tokenizer_config.json is not JSON; copy it anew"]
    if (asked := sorted(set(_code_keys(content)))) and not trust_remote_code:
        findings.append(
            f"tokenizer_config.json asks for code of its own ({', '.join(asked)}); choose another "
            "checkpoint, or read the code and set model.trust_remote_code"
        )
    return findings


def _read_weights(path: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Names and shapes of all tensors, from the headers of the safetensors files."""
    files = weight_files(path)
    if not files:
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
        if pickles:
            remedy = f"only {', '.join(pickles)}, which can run code; convert them to safetensors"
            return {}, [f"{path} holds {remedy}"]
        return {}, [f"{path} has no *.safetensors weights; name the folder that has them"]
    tensors: dict[str, list[int]] = {}
    findings = []
    for file in files:
        try:
            tensors |= _read_header(file)
        except (OSError, ValueError) as error:
            findings.append(f"{file} cannot be read as safetensors ({error}); copy it anew")
    if not findings:
        findings += _check_index(path, {file.name for file in files}, set(tensors))
    return tensors, findings


def _check_index(path: Path, files: set[str], tensors: set[str]) -> list[str]:
    """The index of shards is followed when loading: it may only name what was checked here."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        wanted = {str(k): str(v) for k, v in json.loads(index.read_text())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{index} is no index of weights; copy it anew"]
    findings = []
    if outside := sorted(set(wanted.values()) - files):
        findings.append(
            f"{index} names {', '.join(outside[:3])}, which is none of this folder's weight files; "
            "copy the folder anew"
        )
    if missing := len(set(wanted) - tensors):
        findings.append(f"{missing} tensors of {index} are in no file; copy the folder anew")
    return findings


def weight_files(path: Path) -> list[Path]:
    """The weight files that are loaded: the whole model, or else its shards."""
    whole = path / "model.safetensors"
    return [whole] if whole.is_file() else sorted(path.glob("model-*-of-*.safetensors"))


def _read_header(file: Path) -> dict[str, list[int]]:
    """Shapes by name. Checks that the file is as long as its header says."""
    total = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            raise ValueError(f"it has {total} bytes")
        (length,) = struct.unpack("<Q", start)
        if length > min(total, _LARGEST_HEADER):
            raise ValueError(f"its header claims {length} bytes of {total}")
        header = json.loads(stream.read(length))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if 8 + length + end != total:
        raise ValueError(f"it has {total} bytes, its header says {8 + length + end}")
    return {name: entry["shape"] for name, entry in tensors.items()}


def _check_head(tensors: dict[str, list[int]]) -> list[str]:
    """Refuse an encoder without its classification head.

    transformers would fill the missing head with random numbers and score at random, with one
    line of warning (FlagEmbedding#798). A head ends in a matrix with one row, the one logit;
    type embeddings may have one row as well.
    """
    heads = [
        name
        for name, shape in tensors.items()
        if len(shape) == 2 and shape[0] == 1 and "embed" not in name
    ]
    if heads:
        return []
    return [
        "the weights have no classification head with one logit (this is an encoder, not a "
        "cross-encoder); name a reranker checkpoint"
    ]


def digest_of(path: Path) -> str:
    """SHA-256 [64 hex digits] over names and contents of the files that take part in a score."""
    digest = hashlib.sha256()
    for file in scoring_files(path):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def scoring_files(path: Path) -> Iterator[Path]:
    """What takes part in a score, in a fixed order."""
    named = (path / name for name in _SCORING_FILES)
    yield from (file for file in named if file.is_file())
    yield from sorted(path.glob("*.py"))  # read only where trust_remote_code was asked for
    yield from weight_files(path)


def _positions(config: dict[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.get("model_type") in _OFFSET_POSITIONS:
        return positions - int(config.get("pad_token_id", 1)) - 1
    return positions


def _size(shape: list[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
