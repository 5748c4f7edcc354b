"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Age = Annotated[str, Field(pattern=r"^\d+[mhd]$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A group of keys. Unknown keys are refused and values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)
