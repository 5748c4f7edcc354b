"""What every section of the configuration is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Age = Annotated[str, Field(pattern=r"^\d+[mhd]$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A group of keys. Unknown keys are refused and values cannot be changed after loading.

    What `--help` says of a key is the string below it, with its unit in brackets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def refuse_int16(name: str, *values: Any) -> None:
    """Name the replacements of a precision that earlier versions had."""
    if "int16" in values:
        raise ValueError(
            f"{name}=int16 is no longer supported; use fp32, or ONNX Runtime int8 "
            "(model.backend=onnxruntime model.precision=int8)"
        )
