"""Read YAML files and the command line into one frozen `Config`, with all errors in one list.

Later wins: defaults, then each `--config` file in the order given, then `--section.key value`.
pydantic-settings reads both and formats the help; environment variables are no source.
"""

import argparse
import difflib
import json
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import CliSettingsSource, SettingsError, YamlConfigSettingsSource

from jobs.config import Config
from jobs.runtime.errors import ErrorCollector, RefusedError
from jobs.runtime.redaction import MASK, is_secret


def load_config(
    argv: Sequence[str], require: Sequence[str] = (), config: type[Config] = Config
) -> Config:
    """Resolve the configuration of a command; refuse it with every error of files and arguments.

    `require`: dotted keys the command needs; alternatives are joined by `|`.
    """
    errors, known = ErrorCollector(), list(keys(config))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", nargs="?", const="", default=[])
    parser.add_argument("--dry-run", "--dry_run", nargs="?", const="true")
    given, words = parser.parse_known_args(list(argv))
    words += [f"--dry_run={given.dry_run}"] if given.dry_run else []
    layers = [errors.run(_read_yaml, file) or {} for file in given.config]
    try:
        command_line = _CommandLine(config, words)
    except SettingsError as error:
        errors.add(str(error))
        raise RefusedError(errors.messages) from None
    values: dict[str, Any] = reduce(_merge, [*layers, command_line()], {})
    errors.add(*command_line.unknown(known), *_missing(values, require))
    try:
        resolved = config.model_validate(values)
    except ValidationError as error:
        errors.add(*_describe(error, known))
    errors.raise_if_any()
    return resolved


def help_text(name: str, about: str, config: type[Config], shown: Sequence[str]) -> str:
    """Return the help of a command: the keys of the sections `shown`, with unit and default."""
    fields: Any = {key: (item.annotation, item) for key, item in config.model_fields.items()}
    parser = _CommandLine(create_model("Keys", **{key: fields[key] for key in shown})).root_parser
    parser.usage = f"{name} [--config FILE.yaml]... [--section.key VALUE]..."
    parser.description = about
    parser.epilog = (
        "Later wins: defaults, then each --config file in order, then --section.key.\n"
        "--help-all lists every key, also those that other commands read."
    )
    return str(parser.format_help())


def keys(config: type[Config]) -> Iterator[str]:
    """Yield every key that a file or the command line may set, dotted."""
    for name, field in config.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        yield from (f"{name}.{key}" for key in section) if section else (name,)


class _CommandLine(CliSettingsSource[Any]):
    """`--section.key value`. Each value of a list or map is taken whole, commas included."""

    def __init__(self, model: type[BaseModel], words: list[str] | None = None) -> None:
        # The source needs a model's fields only; BaseSettings would read the environment, too.
        super().__init__(
            cast(Any, model), "", words, cli_avoid_json=True, cli_exit_on_error=False,
            cli_hide_none_type=True, cli_ignore_unknown_args=True,
            cli_shortcuts={"dry_run": "dry-run"}, cli_use_class_docs_for_groups=True,
        )  # fmt: skip

    def _merge_parsed_list(self, parsed_list: list[str], field_name: str) -> str:
        if field_name in self._cli_dict_args and all("=" in value for value in parsed_list):
            return json.dumps(dict(value.split("=", 1) for value in parsed_list))
        return json.dumps(parsed_list)

    def unknown(self, known: Sequence[str]) -> Iterator[str]:
        """Yield an error for each word that is neither a key nor the value of one."""
        before = ""
        for word in self._unclaimed_unknown_args:
            if word.startswith("--"):
                yield _unknown(word[2:].split("=")[0], known)
            elif not before.startswith("--") or "=" in before:
                yield "a value stands alone on the command line; put --section.key before it"
            before = word


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        Path(file).open().close()  # the source takes a file that is not there for an empty one
        return YamlConfigSettingsSource(cast(Any, Config), yaml_file=file)()
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check the path"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"is not valid YAML{f' at line {mark.line + 1}' if mark else ''}; mend the file"
    except (TypeError, ValueError):
        reason = "holds no sections; use section: {key: value}"
    raise RefusedError(f"--config {file} {reason}")


def _merge(low: Any, high: Any) -> Any:
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return high
    return {**low, **{key: _merge(low.get(key), value) for key, value in high.items()}}


def _missing(values: dict[str, Any], require: Sequence[str]) -> Iterator[str]:
    for choices in (key.split("|") for key in require):
        given = ((values.get(section), key) for section, key in (c.split(".") for c in choices))
        if not any(isinstance(section, dict) and section.get(key) for section, key in given):
            yield f"{' or '.join(choices)} is required; give --{choices[0]} or set it in a file"


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key}; {f'did you mean {near[0]}?' if near else '--help lists the keys'}"


def _describe(error: ValidationError, known: Sequence[str]) -> Iterator[str]:
    """Yield pydantic's errors as sentences: key, value unless it may be secret, what is wrong."""
    for item in error.errors(include_url=False):
        key, message = ".".join(map(str, item["loc"])), str(item["msg"])
        if item["type"] == "extra_forbidden":
            yield _unknown(key, known)
        elif item["type"] == "value_error":
            yield message.removeprefix("Value error, ")
        elif item["type"] == "dict_type":
            yield f"{key} holds no keys and values; write KEY=VALUE"
        else:
            hidden = isinstance(item["input"], dict | list) or is_secret(key)
            shown = MASK if hidden else repr(item["input"])
            yield f"{key}={shown}: {message[0].lower()}{message[1:]}"
