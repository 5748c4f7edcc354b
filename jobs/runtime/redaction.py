"""Mask secrets in everything that leaves the process.

A secret is known by its shape (the user part or the query of a URI), by the name beside it
(`password=...`), or by its value, if a variable or setting of a telling name holds it.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from jobs.config import Config
from udfs.scorers.dialects import read_key

MASK: Final = "***"
#: Name of a setting that holds a secret. Also valid in Java, for `spark.redaction.regex`, which by
#: itself knows the first words only. A plural such as max_tokens is a number.
SECRET_NAME: Final = (
    r"(?i)secret|passw(or)?d|passphrase|credential|token(?![a-z])|[a-z0-9][._-]key(?![a-z])"
    r"|(access|account|api|private|shared)key(?![a-z])"
    r"|(?<![a-z])(pwd|sas|sig|signature|dsn|authorization)(?![a-z])"
)
#: The user part of a URI, for `spark.sql.redaction.string.regex`.
USER_IN_URI: Final = r"(?<=://)[^\s/@\"']+:[^\s@\"']+(?=@)"

_SECRET_NAME: Final = re.compile(SECRET_NAME)
# The shell's working directories.
_HARMLESS: Final = ("PWD", "OLDPWD")
# A path says where a secret is kept and not what it is.
_PATH_NAME: Final = re.compile(r"(?i)(file|path|dir|folder|home)$")
_MIN_LENGTH: Final = 8  # characters; a shorter value would mask words such as `true`
_URI: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s\"'<>]*)")
# `jdbc:sqlserver://host;password=x`, `?sig=x&...`, `"api_key": "x"`
_NAMED: Final = re.compile(
    r"(?P<name>[\w.-]+)(?P<sign>[\"']?\s*[=:]\s*[\"']?)(?P<value>((bearer|basic)\s+)?[^\s\"'&;,)\]}]+)",
    re.IGNORECASE,
)
# In these the part before the @ names a container and not a user.
_CONTAINER_SCHEMES: Final = ("abfs", "abfss", "wasb", "wasbs")


def is_secret(name: str) -> bool:
    """Return whether a setting of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None and name not in _HARMLESS


def secrets_of(*settings: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of settings whose names say that they are secret, the longest first."""
    found = {
        value
        for part in settings
        for name, value in part.items()
        if is_secret(name) and len(value) >= _MIN_LENGTH and not _is_path(name, value)
    }
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def known_secrets(config: Config) -> tuple[str, ...]:
    """Return values that the environment, Spark settings, reader options or `remote` name."""
    named = (os.environ, config.spark.settings, config.input.options, config.remote.parameters)
    with suppress(ValueError):  # there is no key
        if key := read_key(config.remote.key_env, config.remote.key_file):
            return (key, *secrets_of(*named))
    return secrets_of(*named)


def masked(text: str, known: tuple[str, ...] = ()) -> str:
    """Return a text, or a URI, without its secrets; `known` are masked wherever they are.

    Masking twice is masking once.
    """
    for secret in known:
        text = text.replace(secret, MASK)
    return _NAMED.sub(_mask_named, _URI.sub(_mask_uri, text))


def masked_tree(content: Any, known: tuple[str, ...] = ()) -> Any:
    """Mask every string in nested dicts and lists; keys stay as they are."""
    if isinstance(content, Mapping):
        return {key: masked_tree(value, known) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [masked_tree(value, known) for value in content]
    return masked(content, known) if isinstance(content, str) else content


def _is_path(name: str, value: str) -> bool:
    """Return whether a value is a path: by its name, or as its first folder exists here."""
    if _PATH_NAME.search(name) or value.startswith(("~/", "./", "../")):
        return True
    return value.startswith("/") and Path("/", *Path(value).parts[1:2]).is_dir()


def _mask_uri(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"], match["rest"]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A raw password may hold slashes (those of AWS do), so behind a colon the last @ counts.
    if "@" in rest and ":" in authority:
        rest = f"{MASK}@{rest.rpartition('@')[2]}"
    elif "@" in authority and scheme.lower() not in _CONTAINER_SCHEMES:
        rest = f"{MASK}@{rest.partition('@')[2]}"
    head, mark, query = rest.partition("?")
    # `part-?.parquet` is a pattern of files; a query has an equals sign, or goes to a web server.
    if mark and ("=" in query or scheme.lower() in ("http", "https")):
        rest = f"{head}?{MASK}"
    return f"{scheme}://{rest}"


def _mask_named(match: re.Match[str]) -> str:
    # `scheme://` is no name with a value.
    if not is_secret(match["name"]) or match["value"].startswith("//"):
        return match[0]
    return f"{match['name']}{match['sign']}{MASK}"
