"""Resolve a model's name to a checked local folder: executors never read the network."""

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import jobs.demo
from jobs.config import ModelConfig
from jobs.input.texts import Rendering
from jobs.runtime.cache import cache, cached_folder
from jobs.runtime.errors import RefusedError
from jobs.scoring.adapters import merge_adapter
from jobs.scoring.prompts import (
    INSTRUCTION,
    TEMPLATES,
    chat_prompt,
    read_template,
    split_lead,
    with_instruction,
)
from udfs.checkpoint import Checkpoint, CheckpointError, digest_of, inspect_checkpoint
from udfs.spec import Prompt

EMBEDDED: Final = "embedded"
REGISTRY: Final = "models:/"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What a score needs of a hub repository, and nothing that could run.
_WANTED: Final = ["*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
_UNWANTED: Final = ["onnx/*", "openvino/*", "*/onnx/*"]


def resolve_model(config: ModelConfig, download: Callable[[str, Path], Path]) -> Checkpoint:
    """Find the model (a local folder, a hub id, `models:/...` or `embedded`), and check it.

    `download` fetches a `models:/` URI into a folder (see `jobs.output.tracking`).

    Raises:
        RefusedError: with every reason why it cannot be used.
    """
    name, folder = str(config.name), find_model(config, download)
    try:
        checkpoint = inspect_checkpoint(folder, kind=config.kind, label=config.label,
                                        trust_remote_code=config.trust_remote_code)  # fmt: skip
    except CheckpointError as error:
        raise RefusedError([f"model.name={name}: {said}" for said in error.messages]) from None
    errors = []
    if checkpoint.positions is not None and config.max_length > checkpoint.positions:
        errors.append(
            f"model.max_length={config.max_length} exceeds the {checkpoint.positions} positions of "
            f"{name}; lower it"
        )
    if checkpoint.kind == "llm":
        try:
            prompt, lead = _prompt_of(config, checkpoint)
            checkpoint = replace(checkpoint, template=prompt, lead=lead)
        except RefusedError as error:
            errors += error.messages
    elif config.template:
        errors.append(
            f"model.template={config.template} is for causal language models, and {name} is a "
            f"{checkpoint.architecture}; leave it out"
        )
    chosen = config.query_instruction or "query_instruction" in config.model_fields_set
    if checkpoint.prompt and not chosen and checkpoint.kind != "llm":
        errors.append(
            f"model.name={name}: sentence-transformers puts a prompt before every query; set "
            f"model.query_instruction={json.dumps(checkpoint.prompt, ensure_ascii=False)}, or to "
            "an empty text to score without it"
        )
    if not errors:
        return checkpoint
    raise RefusedError(errors)


def find_model(config: ModelConfig, download: Callable[[str, Path], Path]) -> Path:
    """Find or fetch the folder of a model, whatever it holds; see `resolve_model`."""
    name = str(config.name)
    if name == EMBEDDED:
        folder = embedded_model()
    elif name.startswith(REGISTRY):
        folder = _from_registry(name, download)
    elif Path(name).expanduser().exists() or name.startswith(("/", ".", "~")):
        folder = Path(name).expanduser().resolve()
    else:
        folder = _from_hub(name, config.revision, config.trust_remote_code)
    return merge_adapter(folder, _base_model)


def rendering(config: ModelConfig, checkpoint: Checkpoint | None) -> Rendering:
    """Return how texts are rendered: an instruction in the prompt is not put before the query."""
    query, doc = config.query_instruction, config.doc_instruction
    if checkpoint is None or checkpoint.template is None:
        # Only rows with instructions of their own get here without a choice, see `resolve_model`.
        unset = checkpoint is not None and "query_instruction" not in config.model_fields_set
        return Rendering(checkpoint.prompt if checkpoint and unset else query, doc)
    if not checkpoint.lead:
        return Rendering("", doc)
    own = read_template(config.template).instruction if config.template else checkpoint.prompt
    instruction = query or own
    return Rendering(with_instruction(checkpoint.lead, instruction), doc, checkpoint.lead)


def _prompt_of(config: ModelConfig, checkpoint: Checkpoint) -> tuple[Prompt, str]:
    """Return how a causal language model is asked, and what rows put before their queries."""
    instruction = config.query_instruction
    if taken := [place for place in ("{query}", "{document}") if place in instruction]:
        raise RefusedError(
            f"model.query_instruction has {taken[0]}, which is where the prompt puts a text; leave "
            "it out"
        )
    if config.template:
        prompt: Prompt | None = read_template(config.template).prompt(instruction)
    else:
        prompt = chat_prompt(checkpoint.path, instruction or checkpoint.prompt)
    if prompt:
        return split_lead(prompt) if instruction == INSTRUCTION else (prompt, "")
    raise RefusedError(
        f"model.name={config.name}: {checkpoint.architecture} is a causal language model, which "
        "scores at random without the prompt that it was trained with; set model.template to "
        f"{', '.join(TEMPLATES)}, or to a YAML file"
    )


def embedded_model() -> Path:
    """Return the folder of the small model that comes with the package.

    From a package in a zip (`--py-files`) it is unpacked into the cache.
    """
    folder = jobs.demo.FOLDER / "model"
    if folder.is_dir():
        return folder
    archive = next((parent for parent in folder.parents if zipfile.is_zipfile(parent)), None)
    inside = "jobs/demo/model/"
    if archive is None:
        raise RefusedError("this installation has no embedded model; set model.name")
    with zipfile.ZipFile(archive) as source:
        members = [info for info in source.infolist() if info.filename.startswith(inside)]
        if not members:
            raise RefusedError(f"{archive} has no embedded model; set model.name")
        checksum = "-".join(f"{info.CRC:08x}" for info in members if info.file_size)

        def unpack(whole: Path) -> None:
            source.extractall(whole.parent, members)
            (whole.parent / inside).rename(whole)

        return cached_folder(cache() / "embedded" / checksum[:64], unpack)


def _base_model(name: str, revision: str | None) -> Path:
    """Find the base model of an adapter."""
    if Path(name).is_dir():
        return Path(name).resolve()
    if not _COMMIT.fullmatch(revision or ""):
        raise RefusedError(
            f"the base model {name} of the adapter is no folder, and revision={revision} no "
            "commit; set base_model_name_or_path in adapter_config.json to a folder that has it"
        )
    return _from_hub(name, revision, False)


def _from_registry(uri: str, download: Callable[[str, Path], Path]) -> Path:
    """Fetch into a new folder, then keep it under the digest of all of its files.

    Prompts and chat templates are no scoring files, but count. The same URI may mean another model
    tomorrow (`models:/NAME@champion`).
    """
    root = cache() / "registry"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as fresh:
        folder = _assembled(download(uri, Path(fresh)))
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        digest = digest_of(folder, files=files)
        return cached_folder(root / digest, partial(shutil.copytree, folder))


def _from_hub(name: str, revision: str | None, with_code: bool) -> Path:
    if not _HUB_ID.fullmatch(name):
        raise RefusedError(f"model.name={name} is neither a folder nor a hub id; check it")
    if not _COMMIT.fullmatch(revision or ""):
        raise RefusedError(
            f"model.revision={revision} of {name} is no commit; give the 40 hex digits that `git "
            f"ls-remote https://huggingface.co/{name} HEAD` prints (a branch or tag can change "
            "between two runs), or name a local folder if that was meant"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [*_WANTED, "*.py"] if with_code else _WANTED
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RefusedError(
            f"model.name={name} at {revision} cannot be downloaded ({type(error).__name__}); check "
            "the id and the network, or download it elsewhere and name the folder"
        ) from None
    return Path(folder)


def _assembled(folder: Path) -> Path:
    """Return the checkpoint in an MLflow model, logged by hand or by the transformers flavour.

    The flavour keeps weights in `model/`, and the tokenizer, which is added to them, elsewhere.
    """
    if (folder / "config.json").is_file():
        return folder
    found = sorted(file.parent for file in folder.rglob("config.json"))
    if not found:
        raise RefusedError(f"the MLflow model in {folder} holds no config.json; log a checkpoint")
    weights = found[0]
    for file in (folder / "components" / "tokenizer").glob("*"):
        if file.is_file() and not (weights / file.name).exists():
            shutil.copy2(file, weights / file.name)
    return weights
