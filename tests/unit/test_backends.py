"""What can run a model is found out before Spark starts, as far as this machine can know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.config import Config, ModelConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring.backends import refuse_backend, refuse_int16
from udfs import int16
from udfs.checkpoint import Checkpoint, inspect_checkpoint

INT16 = ModelConfig(precision="int16")


def without_llvmlite() -> str:
    return "int16 needs llvmlite, which is not installed"


def with_heads(model: Path, folder: Path, heads: int) -> Checkpoint:
    """A copy of the model's folder whose config.json has so many heads."""
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text("utf-8"))
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": heads}))
    return inspect_checkpoint(folder)


def test_only_a_machine_that_scores_needs_the_instructions_and_packages(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int16, "lacking", without_llvmlite)
    checkpoint = inspect_checkpoint(tiny_bert)
    refuse_backend(INT16, checkpoint, here=False)
    with pytest.raises(RefusedError, match="llvmlite, which is not installed"):
        refuse_backend(INT16, checkpoint, here=True)
    refuse_backend(ModelConfig(precision="auto"), checkpoint, here=True)


def test_a_model_without_kernels_is_refused_wherever_it_is_scored(
    tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=r"4 heads of 8, only for multiples of 16.*fp32"):
        refuse_backend(INT16, with_heads(tiny_bert, tmp_path, heads=4), here=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention": "eager"}, "an attention of its own"),
        ({"device": "cuda"}, "int16 is for CPUs; leave model.device=cuda out"),
    ],
)
def test_settings_that_rule_int16_out_do_so_for_scoring_and_for_tuning(
    settings: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate({"model": {"precision": "int16", **settings}})
    model = ModelConfig.model_validate(settings)
    with pytest.raises(RefusedError, match=said):
        refuse_int16(model, None, here=False)
