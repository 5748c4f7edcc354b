"""The configuration: YAML files and the command line, and what is said about errors in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.config import Config
from jobs.rerank import COMMAND
from jobs.runtime.cli import keys, load_config
from jobs.runtime.errors import DONE, REFUSED, RefusedError
from tests.conftest import ROOT

GIVEN = ["--model.name", "m", "--input.path", "in", "--output.path", "out"]
REQUIRED = ("model.name", "input.path|input.table|input.run", "output.path")


def refused(*argv: str) -> str:
    with pytest.raises(RefusedError) as caught:
        load_config(argv, REQUIRED)
    return "\n".join(caught.value.messages)


def test_later_wins_defaults_files_command_line(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("model: {max_length: 100, precision: fp32}\nbatching: {max_pairs: 1}")
    second.write_text("model: {max_length: 200}\nspark: {settings: {spark.a: x, spark.b: x}}")
    config = load_config(
        [*GIVEN, "--config", str(first), f"--config={second}", "--batching.max_pairs=3",
         "--spark.settings", "spark.b=y", "--dry-run"], REQUIRED,
    )  # fmt: skip
    assert (config.model.max_length, config.model.precision) == (200, "fp32")
    assert (config.batching.max_pairs, config.batching.max_tokens) == (3, 4096)
    assert config.spark.settings == {"spark.a": "x", "spark.b": "y"}
    assert config.dry_run and not load_config(["--dry-run", "false"]).dry_run


def test_values_are_taken_whole() -> None:
    config = load_config(
        ["--ranking.min_score", "-1.5", "--evaluation.metrics", "AP", "--input.label", "",
         "--evaluation.metrics", "RR(rel=2)@10", "--evaluation.gate", r'a\b >= "0,3"',
         "--spark.settings", "spark.jars=a,b", "--spark.settings=spark.x=-Da=b -Dc={1,2}",
         "--tune.max_lengths", "96", "--tune.max_lengths", "128", "--ranking.top_k", "None"],
    )  # fmt: skip
    assert (config.ranking.min_score, config.ranking.top_k, config.input.label) == (-1.5, None, "")
    assert config.evaluation.metrics == ["AP", "RR(rel=2)@10"]
    assert config.evaluation.gate == [r'a\b >= "0,3"']
    assert config.spark.settings == {"spark.jars": "a,b", "spark.x": "-Da=b -Dc={1,2}"}
    assert config.tune.max_lengths == [96, 128]


def test_all_errors_of_files_and_arguments_come_together(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {max_lenght: 3, precision: fp8}\nimput: {}\nbatching: 3\n")
    text = refused(
        "--config", str(file), "--config", "/no/such.yaml", "--model.max_length", "many",
        "--input.pth", "x", "--output.path", "o", "--input.options", "header", "stray",
    )  # fmt: skip
    for message in (
        "unknown key model.max_lenght; did you mean model.max_length?",
        "unknown key imput", "precision", "/no/such.yaml", "model.max_length='many'",
        "unknown key input.pth; did you mean input.path?", "model.name is required",
        "input.path or input.table or input.run is required", "stands alone",
        "input.options holds no keys and values; write KEY=VALUE", "batching=3",
    ):  # fmt: skip
        assert message in text, message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*GIVEN, "--model.max_length", "9000"], "raise one or lower the other"),
        ([*GIVEN, "--input.table", "t"], "set only one"),
        (
            ["--model.name", "m", "--output.path", "o", "--input.run", "r"],
            "corpus and input.queries",
        ),
        ([*GIVEN, "--model.precision", "int16"], "use fp32, or ONNX Runtime int8"),
        ([*GIVEN, "--tune.precisions", "int16"], "use fp32, or ONNX Runtime int8"),
        ([*GIVEN, "--tune.precisions", "int8"], "tune.precisions=int8: unknown"),
        ([*GIVEN, "--store.path", "--dry-run"], "--store.path: expected one argument"),
        ([*GIVEN, "--config"], "--config "),
    ],
)
def test_a_refusal_names_the_remedy(argv: list[str], message: str) -> None:
    assert message in refused(*argv)


@pytest.mark.parametrize("key", ["output.path", "store.path"])
@pytest.mark.parametrize(
    "scheme", ["s3", "s3a", "S3A", "s3n", "gs", "oss", "cos", "cosn", "wasb", "wasbs", "swift"]
)
def test_results_on_a_file_system_that_copies_to_rename_are_refused(key: str, scheme: str) -> None:
    text = refused(*GIVEN, f"--{key}", f"{scheme}://bucket/out")
    assert f"{key} is on {scheme}://, where a rename is a copy" in text
    assert all(remedy in text for remedy in ("HDFS", "abfss://", "mounted volume", "output.table"))


@pytest.mark.parametrize(
    "path", ["hdfs://n/o", "abfss://b@a/o", "dbfs:/o", "/Volumes/o", "file:/o", "gs/o", "s3"]
)
def test_file_systems_that_rename_take_results_and_any_gives_inputs(path: str) -> None:
    words = ["--output.path", path, "--store.path", f"{path}-scores", "--input.path", "s3a://b/in",
             "--input.corpus", "gs://b/corpus", "--evaluation.qrels", "s3://b/qrels.txt",
             "--ranked.path", "a=wasbs://b@a/ranked"]  # fmt: skip
    assert load_config(words).output.path == path


def test_windows_is_refused_in_one_sentence() -> None:
    """Before a module is imported that is not there."""
    for module in ("rerank", "evaluate", "tune", "store", "demo", "output.tracking"):
        code = (
            f"import runpy, sys; sys.platform = 'win32'; sys.modules['fcntl'] = None\n"
            f"runpy.run_module('jobs.{module}', run_name='__main__')"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == REFUSED
        assert ended.stderr == (
            "refused: spark-rerank does not run on Windows itself, which lacks the file locks and "
            "forks it needs; run the same command in WSL 2, in a container or on a Linux machine\n"
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [("model:\n  name: [\n", "not valid YAML at line"), ("- 3", "holds no sections")],
)
def test_a_broken_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    assert message in refused(*GIVEN, "--config", str(file))


def test_an_error_shows_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("spark: {settings: {spark.my.password: [5ecret, a b], spark.a.secret: 77777}}")
    text = refused("--config", str(file), "--input.options", "5ecret")
    assert "spark.my.password" in text
    assert "5ecret" not in text and "77777" not in text


def test_help_of_a_command_shows_its_own_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMAND.run(["--help"], lambda _: REFUSED) == DONE
    own = capsys.readouterr().out
    assert "--model.max_length" in own and "--dry-run" in own and "--tune.seconds" not in own
    words = " ".join(own.split())
    assert "longest pair the model is given [tokens] (default: 512)" in words
    assert "{auto,fp16,bf16,fp32,int8}" in words
    assert COMMAND.run(["--help-all"], lambda _: REFUSED) == DONE
    every = capsys.readouterr().out
    for key in keys(Config):
        assert f"--{key}" in every


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().model.max_length = 3  # type: ignore[misc]


def test_base_yaml_spells_out_the_defaults() -> None:
    written = yaml.safe_load((ROOT / "conf/base.yaml").read_text())
    defaults = Config().model_dump()
    for section, values in written.items():
        for key, value in values.items():
            assert defaults[section][key] == value, f"{section}.{key}"


@pytest.mark.parametrize("name", ["base", "local", "gpu", "remote", "relabel"])
def test_the_files_in_conf_are_valid(name: str) -> None:
    load_config(["--config", str(ROOT / f"conf/{name}.yaml")])
