"""Spark's Java classes, kept in a file that later JVMs map into memory.

A JVM reads, checks and links some fifteen thousand classes for the smallest job, for seconds. Java
can keep them linked (class data sharing). The file belongs to one Java and one place of Spark's
jars; another Java would not use it, so each has its own. `python -m jobs.runtime.prepare` makes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

import pyspark

from jobs.runtime.cache import cache

# A file that does not fit is passed over; Java would say so in the midst of a run's own lines.
_QUIETLY: Final = "-Xlog:cds=off -Xlog:cds+dynamic=off"


def with_kept_classes() -> str:
    """Options of a JVM that takes its classes from the file; empty if there is none."""
    found = _kept()
    return f"-XX:SharedArchiveFile={found} {_QUIETLY}" if found else ""


def keeping_classes(file: Path) -> str:
    """Options of a JVM that leaves its classes in a file when it ends."""
    return f"-XX:ArchiveClassesAtExit={file} {_QUIETLY}"


def keep(file: Path) -> Path | None:
    """Put a file that such a JVM has left where later ones look for it.

    Returns:
        Its place; None if the JVM has left nothing, or nobody would find it.
    """
    folder = _folder()
    if folder is None or not file.exists():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    # Java dies of a file that is cut short, so its name says how long it is.
    place = folder / f"{file.stat().st_size}.jsa"
    shutil.move(file, place)
    return place


def _kept() -> Path | None:
    folder = _folder()
    for file in folder.glob("*.jsa") if folder else ():
        # An option of Java's ends at a blank.
        if file.name == f"{file.stat().st_size}.jsa" and " " not in str(file):
            return file
    return None


def _folder() -> Path | None:
    """The folder of this Java and this Spark; None if Java does not say which one it is."""
    program = os.environ.get("JAVA_HOME") or shutil.which("java")
    if not program:
        return None
    place = Path(program).resolve()
    home = place if place.is_dir() else place.parent.parent
    try:
        about = (home / "release").read_text("utf-8")
    except OSError:
        return None
    spark = Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent).resolve()
    key = "\n".join([about, str(home), str(spark), pyspark.__version__])
    return cache() / "classes" / hashlib.sha256(key.encode()).hexdigest()[:16]
