"""What every section of the configuration is made of."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Age = Annotated[str, Field(pattern=r"^\d+[mhd]$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
# abfs is not among them: with a hierarchical namespace it renames a folder in one step.
_COPIES = re.compile(r"(s3[an]?|gs|oss|cosn?|obs|oci|wasbs?|swift(2d)?):", re.IGNORECASE)


class Section(BaseModel):
    """A group of keys. Unknown keys are refused and values cannot be changed after loading.

    What `--help` says of a key is the string below it, with its unit in brackets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def refuse_object_store(name: str, path: str | None) -> None:
    """Refuse a folder of results or scores where a rename is a copy. `path`: URI, or `SCHEME:`."""
    if found := _COPIES.match(path or ""):
        raise ValueError(
            f"{name} is on {found[1]}://, where a rename is a copy and nothing can be put into "
            "place in one step; choose a folder on HDFS, abfss:// or a mounted volume (ranked rows "
            "reach an object store through a catalog's table, output.table)"
        )


def refuse_int16(name: str, *values: Any) -> None:
    """Name the replacements of a precision that earlier versions had."""
    if "int16" in values:
        raise ValueError(
            f"{name}=int16 is no longer supported; use fp32, or ONNX Runtime int8 "
            "(model.backend=onnxruntime model.precision=int8)"
        )
