"""Write dist/spark-rerank-VERSION.zip for `spark-submit --py-files`, the same bytes every time."""

import os
import sys
import tomllib
import zipfile
from pathlib import Path

version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
target = Path("dist", f"spark-rerank-{version}.zip")
target.parent.mkdir(exist_ok=True)


def wanted(path: Path) -> bool:
    """Tell code, and the data that `--model.name embedded` needs, from caches."""
    return path.is_file() and not any(p == "__pycache__" or p.startswith(".") for p in path.parts)


# Two runs at once, or a reader of the former one, never see half a file.
growing = target.with_name(f"{target.name}.{os.getpid()}")
with zipfile.ZipFile(growing, "w", zipfile.ZIP_DEFLATED) as archive:
    for path in sorted(p for room in ("jobs", "udfs") for p in Path(room).rglob("*") if wanted(p)):
        # A bare ZipInfo is dated 1980-01-01; the modes of a checkout differ from user to user.
        entry = zipfile.ZipInfo(path.as_posix())
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.create_system = 3
        entry.external_attr = 0o100644 << 16
        archive.writestr(entry, path.read_bytes())

growing.replace(target)
sys.stdout.write(f"{target}\n")
