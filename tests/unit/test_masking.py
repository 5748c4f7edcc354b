from __future__ import annotations

import re
import signal
import string
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.runtime.redaction import (
    SECRET_NAME,
    USER_IN_URI,
    is_secret,
    masked,
    masked_tree,
    secrets_of,
)
from tests.conftest import ROOT

# What a password may hold raw in a URI that a user has typed; an @ ends it.
PASSWORDS = st.text(string.ascii_letters + string.digits + "/+=:.-_~!$*?", max_size=40).map(
    lambda rest: f"HUSH{rest}HUSH"
)
WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=10)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://user:hush@mlflow.org:5000/x", "https://***@mlflow.org:5000/x"),
        ("https://token@mlflow.org/x", "https://***@mlflow.org/x"),
        ("s3a://KEY:hu/sh@bucket/in", "s3a://***@bucket/in"),
        ("https://host/in?sig=hush&se=2026", "https://host/in?***"),
        ("https://host/in?hush", "https://host/in?***"),
        ("jdbc:postgresql://u:hush@host/db?password=hush", "jdbc:postgresql://***@host/db?***"),
        (
            "jdbc:sqlserver://host;user=u;password=hush;x=1",
            "jdbc:sqlserver://host;user=u;password=***;x=1",
        ),
        ("Authorization: Bearer hush", "Authorization: ***"),
        ("{'api_key': 'hush', 'n': 1}", "{'api_key': '***', 'n': 1}"),
        ("fs.s3a.access.key=hush a.secret.b = hush", "fs.s3a.access.key=*** a.secret.b = ***"),
        ("cannot read https://u:hush@h/x, sorry", "cannot read https://***@h/x, sorry"),
        # What is no secret stays.
        ("abfss://box@account.net/in", "abfss://box@account.net/in"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
        ("/data/day=1/part-?.parquet", "/data/day=1/part-?.parquet"),
        ("s3a://bucket/part-?.parquet", "s3a://bucket/part-?.parquet"),
        (
            "model.max_length=9000 exceeds batching.max_tokens=4096; raise one",
            "model.max_length=9000 exceeds batching.max_tokens=4096; raise one",
        ),
        ("tokenizer: none", "tokenizer: none"),
        ("http://localhost:5000/runs", "http://localhost:5000/runs"),
    ],
)  # fmt: skip
def test_what_is_shown(given: str, shown: str) -> None:
    assert masked(given) == shown
    assert masked(shown) == shown


# What stands behind a name such as token is masked, too.
@given(WORDS, PASSWORDS, WORDS, WORDS.filter(lambda text: masked(f"{text}: x") == f"{text}: x"))
def test_no_password_of_a_uri_survives(user: str, password: str, host: str, text: str) -> None:
    said = f"{text}: cannot reach 'https://{user}:{password}@{host}/{text}' ({text})"
    shown = masked(said)
    assert password not in shown
    assert shown == f"{text}: cannot reach 'https://***@{host}/{text}' ({text})"
    assert masked(shown) == shown


@given(
    st.sampled_from(["password", "token", "X_SAS", "my-api.key", "fs.s3a.secret.key"]), PASSWORDS
)
def test_no_value_beside_a_telling_name_survives(name: str, value: str) -> None:
    value = value.replace("/", "_")
    for said in (f"{name}={value}", f'"{name}": "{value}"', f"https://h/x?a=b&{name}={value}"):
        assert value not in masked(said)


HARMLESS = st.dictionaries(WORDS.filter(lambda word: not is_secret(word)), PASSWORDS)


@given(HARMLESS, PASSWORDS, st.recursive(
    st.text(), lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=8
))  # fmt: skip
def test_a_known_value_is_found_wherever_it_is(
    others: dict[str, str], secret: str, tree: object
) -> None:
    known = secrets_of({**others, "HF_TOKEN": secret})
    assert known == (secret,)
    shown = str(masked_tree({"a": [f"x{secret}y", {"b": secret}], "c": tree, "n": 3}, known))
    assert secret not in shown.replace("***", "")
    assert "'n': 3" in shown


def test_names_that_are_secret() -> None:
    secret = (
        "spark.hadoop.fs.s3a.access.key", "fs.azure.account.key.x", "AWS_SECRET_ACCESS_KEY",
        "password", "DB_PASSWD", "github_token", "sas", "SENTRY_DSN", "client.credentials",
        "DB_PWD", "apiKey", "clientSecret", "STRIPE_KEY",
    )  # fmt: skip
    harmless = (
        "batching.max_tokens", "n_tokens", "tokenizer", "spark.sql.shuffle.partitions", "sassy",
        "spark.master", "header",
    )  # fmt: skip
    assert all(map(is_secret, secret))
    assert not any(map(is_secret, harmless))
    # Paths and short words would take half of a message along.
    harmless_values = {
        "PWD": "/home/you/work", "OLDPWD": "/srv/not-here/x", "AWS_TOKEN_FILE": "/var/run/x-of-x",
        "API_TOKEN": "/tmp/a/b/c", "SECRETS": "~/secrets", "USE_TOKEN": "true", "MY_KEY": "short",
        "MONKEY": "a-long-value", "KEYBOARD": "a-long-value", "TOKENIZERS_PARALLELISM": "a-value-1",
        "SASL_MECHANISM": "SCRAM-SHA-256", "COMPASS": "north-north-east",
    }  # fmt: skip
    assert secrets_of(harmless_values) == ()
    assert secrets_of({"GOOGLE_API_KEY": "/k7Yw9+zz"}) == ("/k7Yw9+zz",)


def test_a_refusal_and_a_traceback_are_masked() -> None:
    code = (
        "from jobs.runtime.command import Command\n"
        "from jobs.runtime.errors import RefusedError\n"
        "def action(config):\n"
        "    said = 'https://u:hush-hush@h/x and hush-of-spark'\n"
        "    raise (RefusedError if config.dry_run else OSError)(said)\n"
        "raise SystemExit(Command('c', 'a', ()).run(None, action))\n"
    )
    words = ["--spark.settings", "fs.s3a.secret.key=hush-of-spark"]
    for further, code_wanted in ((["--dry-run"], 2), ([], 1)):
        ended = subprocess.run(
            [sys.executable, "-c", code, *words, *further],
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        assert ended.returncode == code_wanted
        assert "https://***@h/x and ***" in ended.stderr
        assert "hush" not in ended.stderr.replace("'https://u:hush-hush@h/x and hush-of-spark'", "")


def test_patterns_are_plain_enough_for_java() -> None:
    """They go into Spark's own settings: no named groups, flags in front only."""
    for pattern in (SECRET_NAME, USER_IN_URI):
        assert "(?P" not in pattern
        assert re.compile(pattern)


def test_an_unexpected_error_shows_no_frames_of_java_and_no_quoted_value() -> None:
    stack = (
        "[CAST_INVALID_INPUT] The value 'a text\nof a user' of the type \"STRING\" cannot be cast"
    )
    stack += "\n\tat org.apache.spark.Some.call(Some.scala:7)\n\t... 12 more\nCaused by: x"
    code = (
        "from jobs.runtime.command import Command\n"
        "def action(config):\n"
        f"    raise ValueError({stack!r})\n"
        "raise SystemExit(Command('c', 'a', ()).run([], action))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == 1
    assert "Caused by: x" in ended.stderr and "[CAST_INVALID_INPUT]" in ended.stderr
    assert "of a user" not in ended.stderr and "Some.scala" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_one_line(number: signal.Signals) -> None:
    code = (
        "import time\n"
        "from jobs.runtime.command import Command\n"
        "def action(config):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(1)\n"
        "    error = ValueError('a job was cancelled')\n"
        "    error.add_note('7 pairs are kept')\n"
        "    raise error\n"
        "raise SystemExit(Command('c', 'a', ()).run([], action))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said == (
        f"stopped by {number.name}; 7 pairs are kept; run the same command again to go on\n"
    )
