"""Inspect a model folder without running or unpickling anything in it, and without torch."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from udfs.kinds import Kind, architecture_of, find_head, modules_behind
from udfs.spec import Prompt

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
# Readers of these formats unpickle, and unpickling can run code (CVE-2025-32434).
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Names of the position table's length: BERT's, GPT-2's, MPT's, LED's.
_POSITIONS: Final = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_encoder_position_embeddings"
)  # fmt: skip
# These count positions from pad_token_id + 1, as fairseq does: the first ones belong to padding.
_OFFSET_POSITIONS: Final = (
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
    "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


_KERNELS: Final = ("attn_implementation", "experts_implementation")


class CheckpointError(ValueError):
    """A model folder that cannot or must not be used for scoring; `messages` has every reason."""

    def __init__(self, messages: list[str]) -> None:
        """Keep the messages as a list."""
        self.messages = messages
        super().__init__("; ".join(messages))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that passed every check."""

    path: Path  # its folder
    digest: str  # SHA-256 [64 hex digits] over names and contents of what decides a score
    architecture: str  # class named in config.json
    positions: int | None  # longest input the position table holds [tokens]; None: no limit
    parameters: int  # number of weights
    runtime: str = ""  # of a backend's own copy of the model: what made and what runs it
    prompt: str = ""  # text that sentence-transformers puts before every query
    kind: Kind = "classifier"
    label: int | None = None  # whose logit is the score; None: there is only one
    template: Prompt | None = None  # of a causal language model: how it is asked
    activation: str = ""  # class that sentence-transformers applies to a score, where one is named
    lead: str = ""  # what stands before its query and holds {instruction}, if rows have their own

    @property
    def plain(self) -> bool:
        """Whether it is a classifier with a single logit."""
        return self.kind == "classifier" and self.label is None


def inspect_checkpoint(
    path: Path, *, trust_remote_code: bool = False, kind: str = "auto", label: str = ""
) -> Checkpoint:
    """Check a model folder and read what a job needs to know; CheckpointError if it is unusable.

    `kind` overrides what the folder is by its own files, `label` is a name or an index.
    """
    if not path.is_dir():
        raise CheckpointError([f"model folder {path} does not exist; check model.name"])
    errors: list[str] = []
    config = _read_json(path / "config.json", errors)
    if not config:
        raise CheckpointError(errors or [f"{path} has no config.json; name a Hugging Face folder"])
    saved = _read_json(path / "config_sentence_transformers.json", errors)
    shapes = _read_shapes(path, errors)
    head = find_head(path, config, shapes, kind, label, errors)
    positions = _positions(config, errors)
    errors += code_in(path, trusted=trust_remote_code)
    if not any(_matching(path, _VOCABULARIES)):
        errors.append(f"{path} has no tokenizer files; save the tokenizer beside the model")
    try:
        digest = digest_of(path)
    except OSError as error:
        errors.append(f"{path} cannot be read whole ({error.strerror}); copy it anew")
    if errors:
        raise CheckpointError(errors)
    return Checkpoint(
        path, digest, architecture_of(config), positions, sum(map(prod, shapes.values())),
        prompt=_default_prompt(saved), kind=head.kind, label=head.label,
        activation=_activation(config, saved),
    )  # fmt: skip


def code_in(path: Path, *, trusted: bool = False) -> list[str]:
    """Return what speaks against loading a folder: files that ask transformers to run code.

    `trusted`: code in the folder itself may run.
    """
    errors: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        _refuse_code(name, _read_json(path / name, []), errors, trusted)
    return errors


def digest_of(
    path: Path, known: Mapping[Path, bytes] | None = None, files: Iterable[Path] | None = None
) -> str:
    """Return the SHA-256 [64 hex digits] over the names and contents of the scoring files.

    Files whose own SHA-256 is known are not read again. `files`: others of the folder instead.
    """
    digest = hashlib.sha256()
    for file in scoring_files(path) if files is None else files:
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        if known and file in known:
            digest.update(known[file])
            continue
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def scoring_files(path: Path) -> Iterator[Path]:
    """List the files that decide a score, in a fixed order; chat templates and cards do not.

    Those of modules of sentence-transformers are in folders of their own.
    """
    known = [path / name for name in _SCORING_FILES]
    yield from (file for file in known if file.is_file())
    code = sorted(path.glob("*.py"))
    patterns = (*_MORE_SCORING_FILES, *_READ_BY_CODE) if code else _MORE_SCORING_FILES
    yield from sorted(set(_matching(path, patterns)) - set(known))
    yield from code
    if modules := modules_behind(path):
        yield path / "modules.json"
        files = (file for module in modules for file in module.files(path))
        yield from (file for file in files if file.is_file())
    yield from weight_files(path)


def weight_files(path: Path) -> list[Path]:
    """List the weight files that are loaded: the whole model, or else its shards."""
    whole = path / "model.safetensors"
    return [whole] if whole.is_file() else sorted(path.glob("model-*-of-*.safetensors"))


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


def _read_shapes(path: Path, errors: list[str]) -> dict[str, list[int]]:
    """Return the shape of each tensor, from the files' headers; {} with an error if one is bad."""
    files, shapes = weight_files(path), dict[str, list[int]]()
    if (path / "adapter_config.json").exists():
        errors.append(
            f"{path} holds adapter_config.json, which has weights loaded from another place; merge "
            "the adapter into its model and save that"
        )
        return {}
    if not files:
        pickles = ", ".join(sorted(f.name for f in path.iterdir() if f.suffix in _PICKLES))
        errors.append(
            f"{path} holds only {pickles}, which can run code; convert them to safetensors"
            if pickles
            else f"{path} has no *.safetensors weights; name the folder that has them"
        )
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                shapes |= {key: tensors.get_slice(key).get_shape() for key in tensors.offset_keys()}
        except (OSError, SafetensorError) as error:
            errors.append(f"{file} cannot be read as safetensors ({error}); copy it anew")
            return {}
    index = path / "model.safetensors.index.json"
    if files and index.is_file():
        _refuse_index(index, {file.name for file in files}, set(shapes), errors)
    return shapes


def _refuse_index(index: Path, files: set[str], tensors: set[str], errors: list[str]) -> None:
    """Refuse an index of shards, which loading follows, that names files nobody has checked."""
    wanted = _read_json(index, errors).get("weight_map")
    if not isinstance(wanted, dict):
        errors.append(f"{index} is no index of weights; copy the folder anew")
        return
    if outside := sorted(set(map(str, wanted.values())) - files):
        errors.append(
            f"{index} names {', '.join(outside[:3])}, which is none of this folder's weight files; "
            "copy the folder anew"
        )
    if missing := len(set(wanted) - tensors):
        errors.append(f"{missing} tensors of {index} are in no file; copy the folder anew")


def _default_prompt(saved: dict[str, Any]) -> str:
    """Return the prompt of config_sentence_transformers.json that applies by default."""
    prompts, name = saved.get("prompts"), saved.get("default_prompt_name")
    if saved.get("model_type", "CrossEncoder") != "CrossEncoder" or not isinstance(prompts, dict):
        return ""
    return str(prompts.get(name) or "")


def _activation(config: dict[str, Any], saved: dict[str, Any]) -> str:
    """Return the class of the activation, by the key of each release of sentence-transformers."""
    inside = config.get("sentence_transformers")
    named = inside.get("activation_fn") if isinstance(inside, dict) else None
    named = named or config.get("sbert_ce_default_activation_function")
    return str(named or saved.get("activation_fn") or "").rpartition(".")[2]


def _refuse_code(name: str, content: dict[str, Any], errors: list[str], trusted: bool) -> None:
    """Refuse keys, at any depth, that make transformers fetch or run code (CVE-2026-4372)."""
    code, foreign, kernels = set(), set(), set()

    def look(part: dict[str, Any]) -> dict[str, Any]:
        for key, value in part.items():
            if key == "auto_map" or (key.startswith("_") and key.endswith("_internal")):
                code.add(key)
            if key == "auto_map" and "--" in str(value):
                foreign.add(key)
            if key.strip("_").removesuffix("_internal") in _KERNELS and "/" in str(value):
                kernels.add(key)
        return part

    json.loads(json.dumps(content), object_hook=look)
    if kernels:
        errors.append(
            f"{name} names kernels of the hub ({', '.join(sorted(kernels))}), which may change "
            "from run to run; remove the key"
        )
    if foreign:
        errors.append(
            f"{name} asks for code of another repository ({', '.join(sorted(foreign))}), which "
            "may change from run to run; copy it into the folder and name it there"
        )
    elif (code := code - kernels) and not trusted:
        errors.append(
            f"{name} asks for code of its own ({', '.join(sorted(code))}); choose another "
            "checkpoint, or read the code and set model.trust_remote_code"
        )


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
