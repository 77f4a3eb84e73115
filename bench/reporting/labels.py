"""Names of rows and attacks that tell those apart which would have the same one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bench.utils.files import canonical_json

DIGEST = re.compile(r"[0-9a-f]{64}")
"""A SHA-256, of which only the beginning is shown."""


def disambiguate(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return `names`; those that occur several times with the settings in which they differ."""
    twins: defaultdict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        twins[name].append(index)
    shown = list(names)
    for indices in twins.values():
        for index, text in zip(indices, differences([settings[index] for index in indices]), strict=True):
            shown[index] += f" ({text})" if text else ""
    return shown


def differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each of `settings` the values that not all have, as "key=value, ..."; "" if they are equal."""
    keys = sorted({key for one in settings for key in one})
    varying = [key for key in keys if len({canonical_json(one.get(key)) for one in settings}) > 1]
    return [", ".join(f"{key}={_text(one[key])}" for key in varying if key in one) for one in settings]


def _text(value: Any) -> str:
    if isinstance(value, str) and DIGEST.fullmatch(value):
        return value[:12]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
