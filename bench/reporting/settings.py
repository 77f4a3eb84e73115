"""The settings of a protocol as texts, in the field's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS = {"model": "architecture", "threat": "threat model", "lr": "rate", "eps": "radius", "track": "every epoch"}
_FRACTIONS = {"eps", "step_size"}  # which the field writes as k/255


def protocol_settings(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return every setting of a protocol, as terms and what they are."""
    terms: list[tuple[str, str]] = []
    for key, value in protocol.items():
        if key in ("training", "evaluation"):
            terms += [(_term(key, inner), setting_text(held, inner)) for inner, held in value.items()]
        else:
            terms.append((_term(key), setting_text(value, key)))
    return terms


def _term(*keys: str) -> str:
    return ": ".join(_WORDS.get(key, key.replace("_", " ")) for key in keys).capitalize()


def setting_text(value: Any, key: str = "") -> str:
    """Return a setting as one line of text."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float() if key in _FRACTIONS and abs(value * 255 - round(value * 255)) < 1e-6:
            return f"{round(value * 255)}/255"
        case float():
            return f"{value:g}"
        case None:
            return "none"
        case list() | tuple():
            nested = any(isinstance(item, dict) for item in value)
            return ("; " if nested else ", ").join(setting_text(item, key) for item in value) or "none"
        case dict():
            parts = [str(value["name"])] if "name" in value else []
            for inner, held in value.items():
                if inner != "name":
                    parts.append(f"{_term(inner).lower()} {setting_text(held, inner)}")
            return ", ".join(parts)
        case _:
            return str(value)
