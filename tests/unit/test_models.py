from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from jobs.config import ModelConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring import models
from jobs.scoring.models import resolve_model
from udfs.checkpoint import inspect_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def never(uri: str, folder: Path) -> Path:
    raise AssertionError("no registry was asked for")


def resolve(**keys: object) -> Path:
    return resolve_model(ModelConfig.model_validate({"max_length": 64, **keys}), never).path


def refused(**keys: object) -> str:
    with pytest.raises(RefusedError) as caught:
        resolve(**keys)
    return "\n".join(caught.value.messages)


def test_a_local_folder(tiny_bert: Path) -> None:
    assert resolve(name=str(tiny_bert)) == tiny_bert


def test_max_length_beyond_the_positions_is_refused_with_both_numbers(tiny_xlmr: Path) -> None:
    assert "max_length=127 exceeds the 126 positions" in refused(
        name=str(tiny_xlmr), max_length=127
    )


def test_a_hub_id_needs_a_commit_and_not_a_branch() -> None:
    for revision in (None, "main", COMMIT[:12]):
        said = refused(name="BAAI/bge-reranker-v2-m3", revision=revision)
        assert "`git ls-remote https://huggingface.co/BAAI/bge-reranker-v2-m3 HEAD` prints" in said
    assert "does not exist" in refused(name="./models/none")
    assert "neither a folder nor a hub id" in refused(name="a b")


def test_a_hub_id_is_read_from_the_local_cache_when_offline(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache layout is huggingface_hub's own; the network is switched off."""
    import huggingface_hub.constants

    hub = tmp_path / "models--org--tiny"
    shutil.copytree(tiny_bert, hub / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve(name="org/tiny", revision=COMMIT) == hub / "snapshots" / COMMIT
    assert "cannot be downloaded" in refused(name="org/other", revision=COMMIT)


def test_the_embedded_model_is_unpacked_when_the_package_is_a_zip(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """spark-submit --py-files imports `jobs` from inside a zip; weights are read from files."""
    archive = tmp_path / "spark-rerank.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for file in tiny_bert.iterdir():
            target.write(file, f"jobs/demo/model/{file.name}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(models.jobs.demo, "FOLDER", archive / "jobs" / "demo")
    first, second = resolve(name="embedded"), resolve(name="embedded")
    assert first == second
    assert first.is_relative_to(tmp_path / "cache")
    assert (first / "model.safetensors").read_bytes() == (
        tiny_bert / "model.safetensors"
    ).read_bytes()


def test_an_mlflow_model_with_its_tokenizer_apart_is_put_together(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout that mlflow.transformers writes."""
    weights, tokenizer = tmp_path / "m" / "model", tmp_path / "m" / "components" / "tokenizer"
    shutil.copytree(tiny_bert, weights)
    tokenizer.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(weights / name, tokenizer / name)
    config = ModelConfig(name="models:/reranker/1", max_length=64)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = resolve_model(config, lambda uri, folder: tmp_path / "m")
    assert found.path.is_relative_to(tmp_path / "cache")
    assert found.digest == inspect_checkpoint(tiny_bert).digest


def test_two_registered_models_never_share_a_folder(
    tiny_bert: Path, tiny_xlmr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left-over files of one model under the other's configuration would score nonsense."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def copy(uri: str, folder: Path) -> Path:
        source = {"models:/a/1": tiny_bert, "models:/b/1": tiny_xlmr}[uri]
        return Path(shutil.copytree(source, folder, dirs_exist_ok=True))

    for uri, source in (("models:/a/1", tiny_bert), ("models:/b/1", tiny_xlmr)):
        found = resolve_model(ModelConfig(name=uri, max_length=64), copy)
        assert found.digest == inspect_checkpoint(source).digest


def test_a_registered_model_is_told_by_all_of_its_files(tiny_bert: Path) -> None:
    """Its next version may differ in a prompt alone, which is in no scoring file."""
    prompts = iter(["one: ", "two: "])

    def download(_uri: str, folder: Path) -> Path:
        shutil.copytree(tiny_bert, folder / "model")
        saved = {"default_prompt_name": "q", "prompts": {"q": next(prompts)}}
        name = "config_sentence_transformers.json"
        (folder / "model" / name).write_text(json.dumps(saved), encoding="utf-8")
        return folder / "model"

    config = ModelConfig(name="models:/ranker@champion", max_length=64, query_instruction="")
    found = [resolve_model(config, download) for _ in range(2)]
    assert [each.prompt for each in found] == ["one: ", "two: "]
    assert found[0].digest == found[1].digest and found[0].path != found[1].path
