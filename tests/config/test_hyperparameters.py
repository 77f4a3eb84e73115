from itertools import pairwise

import pytest
from pydantic import Field, ValidationError

from bench.config.hyperparameters import SOURCES, MethodParams, Origin, sourced, weakest


class Params(MethodParams):
    alpha: float = sourced(
        0.1,
        unit="1",
        source="declared",
        by_dataset={
            "cifar10": Origin(0.2, "secondary"),
            "cifar10/single_step": Origin(0.3, "paper"),
            "svhn/multi_step": Origin(0.4, "code"),
        },
        note="how much",
        ge=0,
    )
    teacher: str = sourced(unit="-", source="code")


@pytest.mark.parametrize(
    ("dataset", "setting", "origin"),
    [
        ("digits", "multi_step", Origin(0.1, "declared")),
        ("cifar10", "multi_step", Origin(0.2, "secondary")),
        ("cifar10", "natural", Origin(0.2, "secondary")),
        ("cifar10", "single_step", Origin(0.3, "paper")),
        ("svhn", "multi_step", Origin(0.4, "code")),
        ("svhn", "single_step", Origin(0.1, "declared")),
    ],
)
def test_the_most_particular_canonical_value_wins(dataset, setting, origin):
    assert Params.canonical(dataset, setting) == {"alpha": origin}  # teacher has no canonical value


def test_sources_carry_unit_and_note():
    known = Params.sources()
    assert (known["alpha"].unit, known["alpha"].note, known["alpha"].source) == ("1", "how much", "declared")
    assert known["teacher"].source == "code"


def test_constraints_are_kept():
    with pytest.raises(ValidationError):
        Params(alpha=-1, teacher="x")


@pytest.mark.parametrize("declared", [0.5, Field(0.5, ge=0)])
def test_a_value_without_a_source_is_a_bug(declared):
    class Unsourced(MethodParams):
        alpha: float = declared

    with pytest.raises(TypeError, match=r"Unsourced\.alpha does not say where its value comes from"):
        Unsourced.canonical("digits", "multi_step")


def test_weakest():
    assert weakest(["paper", "declared", "code"]) == "declared"
    assert weakest(["log", "paper", "code"]) == "log"
    assert weakest([]) is None
    assert [weakest([firm, weak]) for firm, weak in pairwise(SOURCES)] == list(SOURCES[1:])
