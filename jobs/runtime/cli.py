"""YAML files and the command line -> one frozen `Config`, with all errors in one list.

Later wins: defaults, then each `--config` file in the order given, then `--section.key value`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from jobs.config import Config
from jobs.runtime.errors import RefusedError

USAGE = """\
usage: {command} [--config FILE.yaml]... [--section.key VALUE]... [--dry-run]

{description}

Later wins: defaults, then each --config file in order, then --section.key on the command line.
"""


def load_config(
    argv: Sequence[str], *, require: Sequence[str] = (), description: str = "", command: str = ""
) -> Config:
    """Resolve the configuration of one command.

    Args:
        argv: arguments without the program's name.
        require: dotted keys this command cannot do without, e.g. `("output.path",)`; alternatives
            are joined by `|`.
        description: what the command does, for `--help`.
        command: how the command is called, for `--help`.

    Raises:
        RefusedError: with every error found in the files and the arguments together.
        SystemExit: code 0, after `--help` was printed.
    """
    arguments = _normalise(argv)
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(help_text(command, description))
        raise SystemExit(0)
    files, arguments, findings = _take_config_files(arguments)
    arguments, unknown = _take_unknown(arguments)
    findings += unknown
    layers: list[dict[str, Any]] = []
    for file in files:
        try:
            layers.append(_read_yaml(file))
        except RefusedError as error:
            findings += error.messages
    findings += [
        f"{key.replace('|', ' or ')} is required; give --{key.split('|')[0]} or set it in a file"
        for key in require
        if not any(_given(choice, arguments, layers) for choice in key.split("|"))
    ]
    try:
        settings = _settings(arguments, layers)
    except ValidationError as error:
        raise RefusedError(findings + _describe(error)) from None
    except SettingsError as error:
        raise RefusedError([*findings, str(error)]) from None
    if findings:
        raise RefusedError(findings)
    return Config.model_validate(settings.model_dump(exclude_unset=True))


def help_text(command: str, description: str) -> str:
    """Every key with its unit and default, section by section."""
    lines = [USAGE.format(command=command or "COMMAND", description=description).rstrip(), ""]
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            summary = " ".join((section.__doc__ or "").split())
            lines += [f"{name}: {summary}"]
            for key, item in section.model_fields.items():
                lines += [f"  --{name}.{key}  (default: {_default(item.default)})"]
                lines += [f"        {item.description}{_choices(item.annotation)}"]
        else:
            flag = name.replace("_", "-")
            lines += [
                f"--{flag}  (default: {_default(field.default)})",
                f"        {field.description}",
            ]
        lines += [""]
    return "\n".join(lines)


def keys() -> Iterator[str]:
    """Every key that a file or the command line may set, dotted."""
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (f"{name}.{key}" for key in section.model_fields)
        else:
            yield name


def _normalise(argv: Sequence[str]) -> list[str]:
    """`--key=value` -> two words; `--dry-run`, a flag that needs no value, -> `--dry_run true`."""
    words: list[str] = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--") else [word]
    for at in reversed(range(len(words))):
        if words[at] in ("--dry-run", "--dry_run"):
            words[at] = "--dry_run"
            if words[at + 1 : at + 2] not in (["true"], ["false"]):
                words.insert(at + 1, "true")
    return words


def _take_config_files(words: list[str]) -> tuple[list[Path], list[str], list[str]]:
    files: list[Path] = []
    rest: list[str] = []
    findings: list[str] = []
    queue = iter(words)
    for word in queue:
        if word != "--config":
            rest.append(word)
        elif (value := next(queue, None)) is None:
            findings.append("--config is given without a file; name a YAML file after it")
        else:
            files.append(Path(value))
    return files, rest, findings


def _take_unknown(words: list[str]) -> tuple[list[str], list[str]]:
    """Split off what names no key, so that it is reported along with every other error."""
    known = list(keys())
    kept: list[str] = []
    findings: list[str] = []
    skipping = False
    for index, word in enumerate(words):
        if word.startswith("--"):
            key = word[2:]
            skipping = key not in known
            if skipping:
                findings.append(_unknown(key, known))
                continue
            if index + 1 == len(words) or words[index + 1].startswith("--"):
                findings.append(f"--{key} is given without a value; put one after it")
                continue
        elif not skipping and not (kept and kept[-1].startswith("--")):
            findings.append("a value stands alone on the command line; put --section.key before it")
            continue
        if not skipping:
            kept.append(word)
    return kept, findings


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "--help lists every key"
    return f"unknown key {key}; {hint}"


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RefusedError(
            f"--config {file} cannot be read ({error.strerror}); check the path"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise RefusedError(f"--config {file} is not valid YAML{where}; mend the file") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RefusedError(
            f"--config {file} holds a {type(content).__name__}; use sections of keys"
        )
    return content


def _settings(arguments: list[str], layers: list[dict[str, Any]]) -> BaseSettings:
    """Merge the layers with pydantic-settings: first source wins, section by section."""

    class Settings(BaseSettings, Config):
        model_config = SettingsConfigDict(extra="forbid", cli_avoid_json=True)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del init_settings, env_settings, dotenv_settings, file_secret_settings
            command_line: CliSettingsSource[Any] = CliSettingsSource(
                settings_cls, cli_parse_args=arguments, cli_exit_on_error=False
            )
            files = [_Layer(settings_cls, layer) for layer in reversed(layers)]
            return (command_line, *files)

    return Settings()


class _Layer(PydanticBaseSettingsSource):
    """One file's content as a source. Values are validated by the settings class, not here."""

    def __init__(self, settings_cls: type[BaseSettings], content: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self.content = content

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.content.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self.content


def _describe(error: ValidationError) -> list[str]:
    """Pydantic's findings as sentences: key, value, what is wrong."""
    known = list(keys())
    sentences = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            sentences.append(_unknown(key, known))
        elif item["type"] == "value_error":
            sentences.append(str(item["msg"]).removeprefix("Value error, "))
        else:
            message = str(item["msg"])
            sentences.append(f"{key}={item['input']!r}: {message[0].lower()}{message[1:]}")
    return sentences


def _given(key: str, arguments: Sequence[str], layers: Sequence[dict[str, Any]]) -> bool:
    section, _, name = key.partition(".")
    in_files = (layer.get(section) for layer in layers)
    return f"--{key}" in arguments or any(isinstance(s, dict) and s.get(name) for s in in_files)


def _default(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, list | dict):
        return " ".join(map(str, value)) if value else "none"
    return str(value).lower() if isinstance(value, bool) else (str(value) or "empty")


def _choices(annotation: Any) -> str:
    if get_origin(annotation) is not Literal:
        return ""
    return f" {{{', '.join(get_args(annotation))}}}"
