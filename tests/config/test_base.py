import pytest
from pydantic import Field, ValidationError
from pydantic_core import PydanticCustomError

from bench.config.base import BaseConfig, Number, parse_indices, parse_number, ranges, shown


class Group(BaseConfig):
    rate: Number = Field(0.5, gt=0)
    """How fast."""
    steps: int = 1
    images: int | None = None
    flag: bool = False


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.5/255", 0.5 / 255),
        ("8/255.", 8 / 255),
        ("8./255.0", 8 / 255),
        (".5/255", 0.5 / 255),
        ("5e-4", 5e-4),
        ("1E2", 100.0),
        (".5", 0.5),
        ("+3", 3.0),
        ("3.", 3.0),
        (2, 2.0),
        (0.25, 0.25),
    ],
)
def test_numbers_as_people_write_them(written, number):
    rate = Group(rate=written).rate
    assert rate == number
    assert type(rate) is float


@pytest.mark.parametrize(
    "written",
    [
        *("eight", "", "1/0", "1/2/3", "/255", "8/-255", "nan", "inf", "1_000", "0x10", "1e999", "8 255", "٨/255"),
        *("1" * 65, None, [1], {}, float("nan"), float("inf"), 10**400, 1 << 100_000),
    ],
    ids=lambda written: f"{type(written).__name__}-{shown(written):.12}",
)
def test_what_is_no_number(written):
    with pytest.raises(ValidationError) as error:
        Group(rate=written)
    message = error.value.errors()[0]["msg"]
    kind = "finite number" if isinstance(written, int | float) else "number"
    assert message == f"{shown(written)} is not a {kind}; write 0.05, 5e-4 or 8/255"


@pytest.mark.parametrize("key", ["rate", "steps", "images"])
def test_yes_is_no_number(key):
    with pytest.raises(ValidationError, match=r"a number, not true or false|True is not a finite number"):
        Group(**{key: True})
    assert Group(flag=True).flag is True


def test_truth_is_no_number_on_its_own_either():
    with pytest.raises(PydanticCustomError, match="True is not a finite number"):
        parse_number(True)


def test_an_unknown_key_suggests_the_nearest():
    with pytest.raises(ValidationError) as error:
        Group(stepz=1)
    assert error.value.errors()[0]["msg"] == "unknown key 'stepz'; did you mean 'steps'?"


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Group().steps = 2


def test_the_docstring_of_a_field_is_its_description():
    assert Group.model_json_schema()["properties"]["rate"]["description"] == "How fast."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        ("a\nb", r"'a\nb'"),
        (5, "5"),
        ("x" * 100, "'" + "x" * 56 + "..."),
        (1 << 100_000, "a number of thousands of digits"),
    ],
    ids=["nothing", "newline", "number", "long", "huge"],
)
def test_values_in_messages(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("text", "one_text"),
    [
        ("0-3999", "0-3999"),
        ("7", "7"),
        (7, "7"),
        ("7,10-12,13", "7,10-13"),
        ("500-599, 0-99", "0-99,500-599"),
        ("0-1,2-3,4", "0-4"),
        ("3-3", "3"),
    ],
)
def test_a_set_of_indices_has_one_text(text, one_text):
    assert parse_indices(text) == parse_indices(one_text) == one_text


@pytest.mark.parametrize(
    "text", ["", "-1", "1-", "a", "1--2", "1,,2", "1;2", "1.5", "5-1", "1,1", "0-5,5", True, None, [1], "9" * 12]
)
def test_what_is_no_set_of_indices(text):
    with pytest.raises(PydanticCustomError):
        parse_indices(text)


def test_ranges_are_those_written():
    assert ranges("7,10-12") == [range(7, 8), range(10, 13)]
