"""What every validated setting shares: frozen, no unknown keys, numbers as people write them."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from bench.errors import did_you_mean

_FRACTION = re.compile(r"\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*/\s*([0-9]+(?:\.[0-9]+)?)\s*")
_DECIMAL = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")


def parse_number(value: Any) -> float:
    """Return a finite float from a number, a fraction such as "8/255", or a decimal such as "5e-4".

    YAML 1.1 reads `5e-4` and `8/255` as strings; both are how the field writes its figures.
    """
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e300 else math.nan
    elif isinstance(value, str) and len(value) <= 64:
        if match := _FRACTION.fullmatch(value):
            divisor = float(match[2])
            number = float(match[1]) / divisor if divisor else math.nan
        elif _DECIMAL.fullmatch(value):
            number = float(value)
    if not math.isfinite(number):
        what = "finite number" if isinstance(value, int | float) else "number"
        raise PydanticCustomError("number", f"{shown(value)} is not a {what}; write 0.05, 5e-4 or 8/255")
    return number


def shown(value: Any) -> str:
    """Return `value` as an error message shows it: on one line, text in quotes, not more than about 60 characters."""
    if value is None:
        return "nothing"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


Number = Annotated[float, BeforeValidator(parse_number, json_schema_input_type=float | str)]
"""A finite float, also written "8/255" or "5e-4"."""


class Settings(BaseModel):
    """A frozen group of settings. An unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_and_no_truth_for_numbers(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key, value in data.items():
                if key not in cls.model_fields:
                    hint = did_you_mean(str(key), cls.model_fields)
                    raise PydanticCustomError("unknown_key", f"unknown key {shown(key)}{hint}", {"key": key})
                if isinstance(value, bool) and cls.model_fields[key].annotation in (int, float, int | None):
                    # pydantic takes `yes` for 1
                    raise PydanticCustomError("not_a_number", "must be a number, not true or false", {"key": key})
        return data
