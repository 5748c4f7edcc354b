"""What every section of the configuration is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A group of keys. Unknown keys are refused and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)


def key(default: Any, description: str, **limits: Any) -> Any:
    """Return a key: its default, what `--help` says of it (unit in brackets), and its limits."""
    return Field(default, description=description, **limits)


def refuse_int16(name: str, *values: Any) -> None:
    """Name the replacements of a precision that earlier versions had."""
    if "int16" in values:
        raise ValueError(
            f"{name}=int16 is no longer supported; use fp32, or ONNX Runtime int8 "
            "(model.backend=onnxruntime model.precision=int8)"
        )
