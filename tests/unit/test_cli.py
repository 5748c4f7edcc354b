from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.config import Config
from jobs.runtime.cli import keys, load_config
from jobs.runtime.errors import RefusedError
from tests.conftest import ROOT

GIVEN = ["--model.name", "m", "--input.path", "in", "--output.path", "out"]
REQUIRED = ("model.name", "input.path|input.table|input.run", "output.path")


def refused(*argv: str) -> list[str]:
    with pytest.raises(RefusedError) as caught:
        load_config(argv, require=REQUIRED)
    return caught.value.messages


def test_later_wins_defaults_files_command_line(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("model: {max_length: 100, precision: fp32}\nbatching: {max_pairs: 1}")
    second.write_text("model: {max_length: 200}\nspark: {settings: {spark.a: x}}")
    config = load_config(
        [*GIVEN, "--config", str(first), f"--config={second}", "--batching.max_pairs=3",
         "--spark.settings", "spark.b=y", "--dry-run"], require=REQUIRED,
    )  # fmt: skip
    assert (config.model.max_length, config.model.precision) == (200, "fp32")
    assert (config.batching.max_pairs, config.batching.max_tokens) == (3, 4096)
    assert config.spark.settings == {"spark.a": "x", "spark.b": "y"}
    assert config.dry_run


def test_negative_numbers_and_repeated_keys_are_read() -> None:
    config = load_config(
        [*GIVEN, "--ranking.min_score", "-1.5", "--evaluation.metrics", "AP",
         "--evaluation.metrics", "RR(rel=2)@10"]
    )  # fmt: skip
    assert config.ranking.min_score == -1.5
    assert config.evaluation.metrics == ["AP", "RR(rel=2)@10"]


def test_all_errors_of_files_and_arguments_come_together(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {max_lenght: 3, precision: fp8}\nimput: {}\n")
    findings = refused(
        "--config", str(file), "--config", "/no/such.yaml", "--model.max_length", "many",
        "--input.pth", "x", "--output.path", "o", "stray",
    )  # fmt: skip
    text = "\n".join(findings)
    for said in (
        "unknown key model.max_lenght; did you mean model.max_length?",
        "unknown key imput", "precision", "/no/such.yaml", "model.max_length='many'",
        "unknown key input.pth; did you mean input.path?", "model.name is required",
        "input.path or input.table or input.run is required", "stands alone",
    ):  # fmt: skip
        assert said in text, said


def test_rules_between_keys() -> None:
    assert "raise one or lower the other" in refused(*GIVEN, "--model.max_length", "9000")[0]
    assert "set only one" in refused(*GIVEN, "--input.table", "t")[0]
    normalised = ("--model.name", "m", "--output.path", "o", "--input.run", "r")
    assert "all three" in refused(*normalised)[0]


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model:\n  name: [\n")
    assert "not valid YAML at line" in refused(*GIVEN, "--config", str(file))[0]


def test_help_lists_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(["--help"], command="python -m jobs.rerank")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for key in keys():
        assert f"--{key.replace('dry_run', 'dry-run')}  (default: " in said
    assert "longest pair the model is given [tokens]" in said
    assert "{auto, fp16, bf16, fp32, int8}" in said


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().model.max_length = 3  # type: ignore[misc]


def test_base_yaml_spells_out_the_defaults() -> None:
    written = yaml.safe_load((ROOT / "conf/base.yaml").read_text())
    defaults = Config().model_dump()
    for section, values in written.items():
        for key, value in values.items():
            assert defaults[section][key] == value, f"{section}.{key}"


@pytest.mark.parametrize("name", ["base", "local", "gpu"])
def test_the_files_in_conf_are_valid(name: str) -> None:
    load_config(["--config", str(ROOT / f"conf/{name}.yaml")])
