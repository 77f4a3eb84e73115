from itertools import pairwise

import pytest
from pydantic import Field, ValidationError

from bench.config.hyperparameters import PROVENANCES, CanonicalValue, MethodParams, hyperparameter, least_reliable


class Params(MethodParams):
    alpha: float = hyperparameter(
        0.1,
        unit="1",
        provenance="declared",
        by_dataset={
            "cifar10": CanonicalValue(0.2, "secondary"),
            "cifar10/single_step": CanonicalValue(0.3, "paper"),
            "svhn/multi_step": CanonicalValue(0.4, "code"),
        },
        note="how much",
        ge=0,
    )
    teacher: str = hyperparameter(unit="-", provenance="code")


@pytest.mark.parametrize(
    ("dataset", "regime", "value"),
    [
        ("digits", "multi_step", CanonicalValue(0.1, "declared")),
        ("cifar10", "multi_step", CanonicalValue(0.2, "secondary")),
        ("cifar10", "natural", CanonicalValue(0.2, "secondary")),
        ("cifar10", "single_step", CanonicalValue(0.3, "paper")),
        ("svhn", "multi_step", CanonicalValue(0.4, "code")),
        ("svhn", "single_step", CanonicalValue(0.1, "declared")),
    ],
)
def test_the_most_particular_canonical_value_wins(dataset, regime, value):
    assert Params.canonical(dataset, regime) == {"alpha": value}  # teacher has no canonical value


def test_hyperparameters_state_unit_note_and_provenance():
    declared = Params.hyperparameters()
    assert (declared["alpha"].unit, declared["alpha"].note, declared["alpha"].provenance) == (
        "1",
        "how much",
        "declared",
    )
    assert declared["teacher"].provenance == "code"


def test_constraints_are_kept():
    with pytest.raises(ValidationError):
        Params(alpha=-1, teacher="x")


@pytest.mark.parametrize("declared", [0.5, Field(0.5, ge=0)])
def test_a_field_without_provenance_is_a_bug(declared):
    class Unsourced(MethodParams):
        alpha: float = declared

    with pytest.raises(TypeError, match=r"Unsourced\.alpha states no provenance"):
        Unsourced.canonical("digits", "multi_step")


def test_least_reliable():
    assert least_reliable(["paper", "declared", "code"]) == "declared"
    assert least_reliable(["log", "paper", "code"]) == "log"
    assert least_reliable([]) is None
    assert [least_reliable([more, less]) for more, less in pairwise(PROVENANCES)] == list(PROVENANCES[1:])
