"""Inspect a model folder without running or unpickling anything in it.

Imports no torch: the driver checks a checkpoint before it starts Spark.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from udfs.weights import read_shapes, weight_files

# Files that decide a score, in the order in which they are hashed. A new name goes to
# `_MORE_SCORING_FILES`, so that the digests of folders without it stay what they are.
_SCORING_FILES: Final = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model",
    "spiece.model", "tokenizer.model", "model.safetensors.index.json",
)  # fmt: skip
# transformers takes any *.model for a vocabulary, and a versioned tokenizer.json before the plain.
_MORE_SCORING_FILES: Final = (
    "*.model", "*.tiktoken", "tekken.json", "tokenizer.*.json", "entity_vocab.json",
    "normalizer.json",
)  # fmt: skip
# The model's own code can read any of these beside it.
_READ_BY_CODE: Final = ("*.json", "*.txt")
_VOCABULARIES: Final = (*_MORE_SCORING_FILES[:4], "tokenizer.json", "vocab.txt", "vocab.json")
# Names of the position table's length: BERT's, GPT-2's, MPT's, LED's.
_POSITIONS: Final = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_encoder_position_embeddings"
)  # fmt: skip
# These count positions from pad_token_id + 1, as fairseq does: the first ones belong to padding.
_OFFSET_POSITIONS: Final = (
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
    "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
_SEQUENCE_CLASSIFIER: Final = "ForSequenceClassification"


class CheckpointError(ValueError):
    """A model folder that cannot or must not be used for scoring.

    Args:
        messages: every reason, with its remedy.
    """

    def __init__(self, messages: list[str]) -> None:
        """Keep the messages as a list."""
        self.messages = messages
        super().__init__("; ".join(messages))


@dataclass(frozen=True)
class Checkpoint:
    """A sequence-classification checkpoint that passed every check.

    Attributes:
        path: its folder.
        digest: SHA-256 [64 hex digits] over names and contents of the files that decide a score.
        architecture: class named in config.json.
        positions: longest input the position table holds [tokens]; None if it has no limit.
        parameters: number of weights.
        runtime: for a backend's own copy of the model, what made and what runs it; else empty.
        prompt: text that sentence-transformers puts before every query; empty if none.
    """

    path: Path
    digest: str
    architecture: str
    positions: int | None
    parameters: int
    runtime: str = ""
    prompt: str = ""


def inspect_checkpoint(path: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Check a model folder and read what a job needs to know about it.

    Raises:
        CheckpointError: with every reason why this folder cannot be used.
    """
    if not path.is_dir():
        raise CheckpointError([f"model folder {path} does not exist; check model.name"])
    errors: list[str] = []
    config = _read_json(path / "config.json", errors)
    if not config and not errors:
        errors = [f"{path} has no config.json; name a Hugging Face folder"]
    if errors:
        raise CheckpointError(errors)
    shapes, weight_errors = read_shapes(path)
    code_errors = [] if trust_remote_code else _check_code(path)
    errors = _check_kind(path, config, shapes) + weight_errors + code_errors
    positions = _positions(config, errors)
    if not any(True for _ in _matching(path, _VOCABULARIES)):
        errors.append(f"{path} has no tokenizer files; save the tokenizer beside the model")
    sentence_transformers = _read_json(path / "config_sentence_transformers.json", errors)
    try:
        digest = digest_of(path)
    except OSError as error:
        errors.append(f"{path} cannot be read whole ({error.strerror}); copy it anew")
    if errors:
        raise CheckpointError(errors)
    return Checkpoint(
        path=path,
        digest=digest,
        architecture=str(config["architectures"][0]),
        positions=positions,
        parameters=sum(map(prod, shapes.values())),
        prompt=_default_prompt(sentence_transformers),
    )


def digest_of(path: Path, known: Mapping[Path, bytes] | None = None) -> str:
    """Return the SHA-256 [64 hex digits] over the names and contents of the scoring files.

    Args:
        path: the model's folder.
        known: SHA-256 of files that were read already.
    """
    digest = hashlib.sha256()
    for file in scoring_files(path):
        digest.update(file.name.encode() + b"\0")
        digest.update((known or {}).get(file) or _hash(file))
    return digest.hexdigest()


def _hash(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def scoring_files(path: Path) -> Iterator[Path]:
    """List the files that decide a score, in a fixed order; chat templates and cards do not."""
    known = [path / name for name in _SCORING_FILES]
    yield from (file for file in known if file.is_file())
    code = sorted(path.glob("*.py"))
    patterns = (*_MORE_SCORING_FILES, *_READ_BY_CODE) if code else _MORE_SCORING_FILES
    yield from sorted(set(_matching(path, patterns)) - set(known))
    yield from code
    yield from weight_files(path)


def _matching(path: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (file for pattern in patterns for file in path.glob(pattern) if file.is_file())


def _read_json(file: Path, errors: list[str]) -> dict[str, Any]:
    """Return a JSON object; {} if there is no such file, or if it holds no object (an error)."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError:
        content = None
    if isinstance(content, dict):
        return content
    errors.append(f"{file} is not a JSON object; copy it anew")
    return {}


def _check_kind(path: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> list[str]:
    """Refuse what is no cross-encoder, for one reason: those that follow from it say nothing new.

    transformers fills a head that is missing with random numbers and scores at random, with one
    line of warning (FlagEmbedding#798). A head ends in a matrix with one row for each label.
    """
    architecture = str((config.get("architectures") or ["none"])[0])
    if modules := _unsupported_modules(path, architecture):
        return [
            f"modules.json of {path} adds {' and '.join(modules)} to the transformer, which is not "
            f"supported; name a model whose ...{_SEQUENCE_CLASSIFIER} computes the logit"
        ]
    if not architecture.endswith(_SEQUENCE_CLASSIFIER):
        return [
            f"config.json names the architecture {architecture}; a cross-encoder is a "
            f"...{_SEQUENCE_CLASSIFIER} with one label; name such a model"
        ]
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if labels != 1:
        return [f"the model has {labels} labels, a cross-encoder has one; name such a model"]
    heads = (s[0] == 1 for name, s in shapes.items() if len(s) == 2 and "embed" not in name)
    if shapes and not any(heads):
        return [
            "the weights have no classification head with one logit (this is an encoder, not a "
            "cross-encoder); name a reranker checkpoint"
        ]
    return []


def _unsupported_modules(path: Path, architecture: str) -> list[str]:
    """Return the modules that sentence-transformers' CrossEncoder would run after the transformer.

    It ignores modules.json of other models, such as bi-encoders, where the transformer has a head.
    """
    try:
        modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
        names = [str(module["type"]).rpartition(".")[2] for module in modules]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    saved = _read_json(path / "config_sentence_transformers.json", [])
    ignored = (
        architecture.endswith(_SEQUENCE_CLASSIFIER) and saved.get("model_type") != "CrossEncoder"
    )
    return [] if ignored else [name for name in names if name != "Transformer"]


def _default_prompt(saved: dict[str, Any]) -> str:
    """Return the prompt of config_sentence_transformers.json that applies by default."""
    prompts, name = saved.get("prompts"), saved.get("default_prompt_name")
    if saved.get("model_type", "CrossEncoder") != "CrossEncoder" or not isinstance(prompts, dict):
        return ""
    return str(prompts.get(name) or "")


def _check_code(path: Path) -> list[str]:
    """Refuse files beside the weights that bring in code, or weights that nobody has checked."""
    errors: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        if keys := sorted(set(_code_keys(_read_json(path / name, errors)))):
            errors.append(
                f"{name} asks for code of its own ({', '.join(keys)}); choose another checkpoint, "
                "or read the code and set model.trust_remote_code"
            )
    return errors


def _code_keys(content: Any) -> Iterator[str]:
    """Yield keys, at any depth, that make transformers fetch or run code (CVE-2026-4372)."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "auto_map" or (key.startswith("_") and key.endswith("_internal")):
                yield key
            yield from _code_keys(value)
    elif isinstance(content, list):
        for value in content:
            yield from _code_keys(value)


def _positions(config: dict[str, Any], errors: list[str]) -> int | None:
    """Return the longest input [tokens] that the position table holds; None if it has no limit."""
    kind = str(config.get("model_type"))
    found = (config.get(name) for name in _POSITIONS)
    positions = next((n for n in found if isinstance(n, int) and n > 0), None)
    if positions is None or kind.endswith("t5"):  # whose n_positions bounds nothing
        return None
    if kind not in _OFFSET_POSITIONS:
        return positions
    padding = config.get("pad_token_id", 1)
    if not isinstance(padding, int):
        errors.append(
            f"config.json has pad_token_id={json.dumps(padding)}, from which {kind} counts "
            "positions; set it to the id of the tokenizer's padding token, mostly 1"
        )
        return None
    return positions - padding - 1
