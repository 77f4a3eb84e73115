"""Pydantic's validation errors as sentences in the words of a suite file."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bench.config.base import shown
from bench.errors import did_you_mean

_MESSAGES = {
    "missing": "this key is required",
    "union_tag_not_found": "this needs a key 'name'",
    "greater_than": "must be greater than {gt:.10g}",
    "greater_than_equal": "must be at least {ge:.10g}",
    "less_than": "must be less than {lt:.10g}",
    "less_than_equal": "must be at most {le:.10g}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number with fewer digits",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "literal_error": "must be {expected}",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
}
"""What a suite's author reads for each of pydantic's error types; the others keep pydantic's message."""


def sentence(problem: Any) -> str:
    """Say pydantic's complaint in the words of the file."""
    kind, value, context = problem["type"], problem.get("input"), problem.get("ctx", {})
    if kind == "union_tag_invalid":
        return f"unknown name '{context['tag']:.60}'{did_you_mean(context['tag'], _quoted(context['expected_tags']))}"
    if kind not in _MESSAGES:
        message: str = problem["msg"]
        return message[0].lower() + message[1:]
    text = _MESSAGES[kind].format(**context)
    if kind == "missing" or not isinstance(value, str | int | float | None):
        return text
    return f"{text} (got {shown(value)})"


def complaint(error: ValidationError, *place: str) -> str:
    """Return pydantic's first complaint, after the keys that lead to it; `place`: those of what was validated."""
    first = error.errors(include_url=False)[0]
    keys = ".".join(f"{part!s:.100}" for part in (*place, *first["loc"]))
    return f"{keys}: {sentence(first)}" if keys else sentence(first)


def _quoted(words: str) -> list[str]:
    """Return the words of pydantic's list `'clean', 'pgd'`."""
    return [word.strip(" '") for word in words.split(",")]
