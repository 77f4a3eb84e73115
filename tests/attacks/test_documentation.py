"""docs/attacks.md names every setting of the final attacks with its default, and what it shows is valid."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from bench.attacks import masking
from bench.attacks.autoattack import PASSES, SQUARE_GAIN
from bench.config.attacks import CW, FGSM, PGD, AutoAttack, Clean, Joint
from bench.config.corruptions import BENCHMARK, COMPUTED, Corruptions, Read
from bench.config.protocol import Evaluation
from bench.reporting.flags import FAR_ABOVE

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "attacks.md").read_text(encoding="utf-8")
ATTACKS = [Clean, FGSM, PGD, CW, AutoAttack, Joint, Corruptions]


def stated() -> dict[str, dict[str, str]]:
    """Return what the table says: by attack, every setting and its default."""
    (table,) = re.findall(r"\| attack \| setting .*?\n\|[-|]+\n(.*?)\n\n", TEXT, re.DOTALL)
    found: dict[str, dict[str, str]] = {}
    name = ""
    for line in table.split("\n"):
        attack, setting, default, _ = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        name = attack or name
        found.setdefault(name, {}).update({setting: default} if setting else {})
    found["cw"] = found["pgd"]
    return found


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_every_setting_is_described(attack):
    fields = {name: field.default for name, field in attack.model_fields.items() if name != "name"}
    shown = {None: "none", True: "true", 2 / 255: "2/255"}
    expected = {name: shown.get(default, str(default)) for name, default in fields.items()}
    if "images" in expected:
        expected["images"] = "all"
    assert stated()[attack().name] == expected


def test_the_example_is_valid_and_the_default_is_the_default():
    example, corruptions = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert len(Evaluation.model_validate(yaml.safe_load(corruptions)["evaluation"]).final) == 4
    final = Evaluation.model_validate(yaml.safe_load(example)["evaluation"]).final
    assert {attack.name for attack in final} == {attack().name for attack in ATTACKS}
    default = re.search(r"Default: `\[(.*?)\]`", TEXT)[1].split(", ")
    assert [attack.name for attack in Evaluation().final] == default


def test_every_corruption_is_named():
    named = set(re.findall(r"`(\w+)`", TEXT.partition("## Natural corruptions")[2].partition("\n## ")[0]))
    assert set(COMPUTED) | set(get_args(Read)) | set(BENCHMARK) <= named


def test_the_numbers_are_those_of_the_code():
    for part, passes in PASSES.items():
        assert re.search(rf"\| `{part}` \|.*\| {passes:,} \|", TEXT)
    assert f"more than {100 * SQUARE_GAIN:g} % of the images" in TEXT
    assert masking.SAME_LOGITS == 1e-4
    assert "10⁻⁴ of their length" in TEXT
    assert f"by more than {100 * FAR_ABOVE:g} points" in TEXT


def test_the_limits_of_masked_gradients_are_those_of_the_code():
    limits = re.findall(r"^\| .* \| .* \| (\d+) \|$", TEXT.partition("### Masked gradients")[2], re.MULTILINE)
    code = [
        masking.NO_GRADIENT, masking.WRONG_GRADIENT, masking.WRONG_GRADIENT, masking.NOISE, masking.ONE_STEP,
        masking.RESCALED, masking.OTHER_LOSS,
    ]  # fmt: skip
    assert [float(limit) for limit in limits] == [100 * limit for limit in code]
    assert f"on {masking.PROBED} images" in TEXT


def test_the_schema_of_reports_knows_every_setting():
    (text,) = re.findall(r"```json\n(.*?)```", (DOCS / "report-format.md").read_text(encoding="utf-8"), re.DOTALL)
    known = json.loads(text)["$defs"]["attack"]["properties"]
    assert set(known) == {name for attack in ATTACKS for name in attack.model_fields}
    assert known["name"]["enum"] == [attack().name for attack in ATTACKS]
