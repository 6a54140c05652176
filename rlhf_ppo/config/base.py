"""What all sections share: frozen, strict, bounded, documented."""

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
)

# Bounds that no sensible setting reaches: beyond them libraries overflow, or single precision does.
MOST = 1e9
LEAST = 1e-30
LARGEST_COUNT = 2**31 - 1
LARGEST_SEED = 2**32 - 1  # NumPy takes no larger one
LONGEST_NAME = 255  # bytes of a file's name


def _whole_number(value: Any) -> Any:
    """Refuse `true` and `2.5` where a count is asked for; pydantic alone would read `true` as 1."""
    if isinstance(value, bool | float):
        raise ValueError("must be a whole number")
    return value


def _real_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, int) and abs(value) > MOST:  # more digits than a float can hold, perhaps
        raise ValueError(f"must be at most {MOST:g}")
    return value


def _not_tiny(value: float) -> float:
    if 0 < value < LEAST:
        raise ValueError(f"is 0 in single precision; must be at least {LEAST:g}")
    return value


def _count_or_share(value: Any) -> Any:
    if isinstance(value, bool | str) or (isinstance(value, float) and not value < 1):
        raise ValueError("must be a whole number, or a share below 1")
    return value


def _url(value: str) -> str:
    """An address that the standard library can open; it raises on some, such as http://[::1/."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError(f"is no address: {error}") from error
    if not usable or not value.isprintable() or " " in value:
        raise ValueError("must be an address like http://localhost:8000/v1")
    return value


def _place(value: str) -> str:
    if any(len(part.encode()) > LONGEST_NAME for part in value.split("/")):
        raise ValueError(f"holds a name longer than the {LONGEST_NAME} bytes that a file's can be")
    return value


# The limits stand before the validators: so they reach the JSON schema under its own names.
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT), BeforeValidator(_whole_number)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST_COUNT), BeforeValidator(_whole_number)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED), BeforeValidator(_whole_number)]
Threads = Annotated[int, Field(ge=0, le=4096), BeforeValidator(_whole_number)]
Positive = Annotated[
    float, Field(gt=0, le=MOST), BeforeValidator(_real_number), AfterValidator(_not_tiny)
]
PositiveOrZero = Annotated[
    float, Field(ge=0, le=MOST), BeforeValidator(_real_number), AfterValidator(_not_tiny)
]
Share = Annotated[float, Field(gt=0, le=1), BeforeValidator(_real_number)]
Fraction = Annotated[float, Field(ge=0, le=1), BeforeValidator(_real_number)]
BelowOne = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_real_number)]
AboveOne = Annotated[float, Field(gt=1, le=MOST), BeforeValidator(_real_number)]
Number = Annotated[float, Field(ge=-MOST, le=MOST), BeforeValidator(_real_number)]
CountOrShare = Annotated[
    int | float,
    Field(gt=0, le=LARGEST_COUNT),
    BeforeValidator(_count_or_share),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": LARGEST_COUNT},
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            ]
        }
    ),
]
Url = Annotated[str, Field(pattern=r"^https?://[^/]"), AfterValidator(_url)]
Place = Annotated[str, AfterValidator(_place)]  # a path, a hub id, or file.py:function


class Settings(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no infinities, text that can be kept."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _text_can_be_a_name(cls, value: Any) -> Any:
        """No name of a file or a model holds a zero byte (half characters pydantic refuses)."""
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str) and "\0" in part:
                raise ValueError("holds a zero byte")
        return value
