"""What all sections share: frozen, strict, documented."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole_number(value: Any) -> Any:
    """Refuse `true` and `2.5` where a count is asked for; pydantic alone would read `true` as 1."""
    if isinstance(value, bool | float):
        raise ValueError("must be a whole number")
    return value


def _real_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Count = Annotated[int, BeforeValidator(_whole_number), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(_whole_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_real_number), Field(gt=0)]
PositiveOrZero = Annotated[float, BeforeValidator(_real_number), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_real_number), Field(ge=0, le=1)]
BelowOne = Annotated[float, BeforeValidator(_real_number), Field(ge=0, lt=1)]
AboveOne = Annotated[float, BeforeValidator(_real_number), Field(gt=1)]
Number = Annotated[float, BeforeValidator(_real_number)]


class Settings(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
