"""Kept classes: used by the Java that made them, and by no other; never when cut short."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.runtime import jvm


def java(*options: str) -> subprocess.CompletedProcess[str]:
    home = os.environ.get("JAVA_HOME")
    program = f"{home}/bin/java" if home else str(shutil.which("java"))
    words = [program, *options, "-Xlog:class+load:stdout", "-XshowSettings:properties", "-version"]
    return subprocess.run(words, capture_output=True, text=True, check=True)


def test_classes_are_kept_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert jvm.with_kept_classes() == ""
    made = tmp_path / "made.jsa"
    java(*jvm.keeping_classes(made).split())
    place = jvm.keep(made)
    assert place is not None and not made.exists()
    options = jvm.with_kept_classes()
    assert str(place) in options
    assert "(top)" in java(*options.split()).stdout  # where Java says it found a class

    # Java would die of a file that lacks its end.
    place.write_bytes(place.read_bytes()[:-1])
    assert jvm.with_kept_classes() == ""


def test_another_java_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "jdk").mkdir()
    (tmp_path / "jdk" / "release").write_text('JAVA_VERSION="17.0.1"')
    (tmp_path / "made.jsa").write_text("classes")
    assert jvm.keep(tmp_path / "made.jsa")
    assert jvm.with_kept_classes()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert jvm.with_kept_classes() == ""
    (tmp_path / "jdk" / "release").unlink()
    assert jvm.with_kept_classes() == ""
