"""The base of all configuration classes: frozen, no unknown keys, numbers in common spellings."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any
from unicodedata import normalize

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from bench.errors import did_you_mean

_UNSIGNED = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_FRACTION = re.compile(rf"\s*([+-]?{_UNSIGNED})\s*/\s*({_UNSIGNED})\s*")
_DECIMAL = re.compile(rf"\s*[+-]?{_UNSIGNED}(?:[eE][+-]?[0-9]+)?\s*")


def parse_number(value: Any) -> float:
    """Return a finite float from a number, a fraction such as "8/255", or a decimal such as "5e-4".

    YAML 1.1 reads `5e-4` and `8/255` as strings.
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


_RANGES = re.compile(r"[0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*")


def parse_indices(value: Any) -> str:
    """Return the canonical text of a set of indices, ranges with ends included: "7,10-12,13" -> "7,10-13".

    All spellings of a set must have the same identity.
    """
    text = re.sub(r"\s", "", str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not _RANGES.fullmatch(text):
        raise PydanticCustomError("indices", f"invalid index range {shown(value)}; expected 0-3999 or 0-99,500-599")
    merged: list[tuple[int, int]] = []
    for first, last in sorted(_range(part) for part in text.split(",")):
        if first > last:
            raise PydanticCustomError("indices", f"the range {first}-{last} ends before it begins")
        if merged and first <= merged[-1][1]:
            raise PydanticCustomError("indices", f"duplicate index {first}")
        if merged and first == merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in merged)


def ranges(indices: str) -> list[range]:
    """Return the ranges of what `parse_indices` returned, rising."""
    return [range(first, last + 1) for first, last in map(_range, indices.split(","))]


def _range(part: str) -> tuple[int, int]:
    first, _, last = part.partition("-")
    return int(first), int(last or first)


def shown(value: Any) -> str:
    """Return `value` for an error message: on one line, text in quotes, at most about 60 characters."""
    if value is None:
        return "nothing"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def named(value: Any) -> Any:
    """Expand the short form `flip` to `{name: flip}`."""
    return {"name": value} if isinstance(value, str) else value


def unless(default: str | bool) -> AfterValidator:
    """Make the default of a choice None, which identities leave out."""
    return AfterValidator(lambda value: None if value == default else value)


Number = Annotated[float, BeforeValidator(parse_number, json_schema_input_type=float | str)]
"""A finite float, also written "8/255" or "5e-4"."""

Indices = Annotated[str, BeforeValidator(parse_indices, json_schema_input_type=str)]
"""A set of indices from 0, written as ranges with both ends included: "0-3999" or "0-99,500-599"."""


def _below_the_data_root(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/") or not path.strip("./"):
        raise PydanticCustomError("path", "the path must stay below the data root: no '..' and no leading '/'")
    if not path.isprintable() or path != path.strip():
        raise PydanticCustomError("path", "the path must be printable, without spaces around it")
    return normalize("NFC", path)


DataPath = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_below_the_data_root)]
"""A path below the data root, with / between names; in Unicode normal form C."""


class BaseConfig(BaseModel):
    """A frozen configuration. An unknown key is an error that names the nearest known key."""

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
