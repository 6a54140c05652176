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


# The limits stand before the validators: so they reach the JSON schema under its own names.
Count = Annotated[int, Field(ge=1), BeforeValidator(_whole_number)]
CountOrZero = Annotated[int, Field(ge=0), BeforeValidator(_whole_number)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(_real_number)]
PositiveOrZero = Annotated[float, Field(ge=0), BeforeValidator(_real_number)]
Share = Annotated[float, Field(gt=0, le=1), BeforeValidator(_real_number)]
Fraction = Annotated[float, Field(ge=0, le=1), BeforeValidator(_real_number)]
BelowOne = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_real_number)]
AboveOne = Annotated[float, Field(gt=1), BeforeValidator(_real_number)]
Number = Annotated[float, BeforeValidator(_real_number)]


class Settings(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
