"""What must stay secret, masked in whatever leaves the process: files, MLflow, terminal, errors.

Three things are looked for: the user in front of a URI's host and the query
behind it, a value beside a name that sounds like a secret (`password=...`), and values that are
known to be secret (`secrets_of` the environment and free settings), wherever they appear.

It errs on the side of masking: `s3://bucket:x/a@b` may lose more than it had to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jobs.config import Config

MASK: Final = "***"
#: A name whose value is a secret. Spark's own `spark.redaction.regex` knows the first four words
#: only. Also valid in Java, for that setting. A plural of token is a number of them.
SECRET_NAME: Final = (
    r"(?i)secret|passw|passphrase|access[._-]?key|token(?![a-z])|pwd(?![a-z])|account[._-]?key"
    r"|private[._-]?key|api[._-]?key|credential|signature|authorization"
    r"|(?<![a-z])(sas|sig|dsn)(?![a-z])"
)
#: The user part of a URI, for `spark.sql.redaction.string.regex`.
USER_IN_URI: Final = r"(?<=://)[^\s/@\"']+:[^\s@\"']+(?=@)"

_SECRET_NAME: Final = re.compile(SECRET_NAME)
_URI: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s\"'<>]*)")
# `jdbc:sqlserver://host;password=x`, `?sig=x&...`, `"api_key": "x"`; a value ends at what could
# not be part of one.
_NAMED: Final = re.compile(
    r"(?P<name>[\w.-]+)(?P<sign>[\"']?\s*[=:]\s*[\"']?)(?P<value>((bearer|basic)\s+)?[^\s\"'&;,)\]}]+)",
    re.IGNORECASE,
)
# In these the part before the @ names a container and not a user.
_PLACES: Final = ("abfs", "abfss", "wasb", "wasbs")
# Where a secret is kept, and not what it is: masking it would blot out paths everywhere.
_WHERE: Final = re.compile(r"(?i)(file|path|dir|folder)$")
# A shorter value would blot out words such as `true`.
_SHORTEST: Final = 8


def is_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def secrets_of(*settings: Mapping[str, str]) -> tuple[str, ...]:
    """Values of settings whose names say that they are secret, the longest first."""
    found = {
        value
        for part in settings
        for name, value in part.items()
        if is_secret(name) and not _WHERE.search(name) and len(value) >= _SHORTEST
    }
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def known_secrets(config: Config) -> tuple[str, ...]:
    """Values that the environment, Spark settings and reader options name as secrets."""
    return secrets_of(os.environ, config.spark.settings, config.input.options)


def masked(text: str, known: tuple[str, ...] = ()) -> str:
    """A text, or a URI, without its secrets. Masking twice is masking once.

    Args:
        text: anything that leaves the process.
        known: values to be masked wherever they are, see `secrets_of`.
    """
    for secret in known:
        text = text.replace(secret, MASK)
    text = _URI.sub(_uri, text)
    return _NAMED.sub(_named, text)


def masked_tree(content: Any, known: tuple[str, ...] = ()) -> Any:
    """The same for every string in nested dicts and lists; keys stay as they are."""
    if isinstance(content, Mapping):
        return {key: masked_tree(value, known) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [masked_tree(value, known) for value in content]
    return masked(content, known) if isinstance(content, str) else content


def _uri(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"], match["rest"]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A raw password may hold slashes (those of AWS do), so behind a colon the last @ counts.
    if "@" in rest and ":" in authority:
        rest = f"{MASK}@{rest.rpartition('@')[2]}"
    elif "@" in authority and scheme.lower() not in _PLACES:
        rest = f"{MASK}@{rest.partition('@')[2]}"
    head, mark, query = rest.partition("?")
    # `part-?.parquet` is a pattern of files; a query has an equals sign, or goes to a web server.
    if mark and ("=" in query or scheme.lower() in ("http", "https")):
        rest = f"{head}?{MASK}"
    return f"{scheme}://{rest}"


def _named(match: re.Match[str]) -> str:
    # `scheme://` is no name with a value.
    if not is_secret(match["name"]) or match["value"].startswith("//"):
        return match[0]
    return f"{match['name']}{match['sign']}{MASK}"
