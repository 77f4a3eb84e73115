import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from bench.config.attacks import CW, FGSM, PGD, AutoAttack, Clean, Threat, TrainingAttack
from bench.config.augmentation import Crop, Cutout, Enhance, Flip, Mix, RandomErasing, Rotate, Tones
from bench.config.optimization import (
    LAMB,
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Cyclic,
    OneCycle,
    Piecewise,
)
from bench.config.protocol import Evaluation, Protocol, Training

MINIMAL = {
    "dataset": "digits",
    "model": "small_cnn",
    "threat": {"norm": "linf", "eps": "8/255"},
    "training": {"epochs": 1},
}


def test_the_defaults_are_the_recipe_of_rice_et_al():
    training = Protocol(**MINIMAL).training
    assert training.batch_size == 128
    sgd = training.optimizer
    assert (sgd.lr, sgd.momentum, sgd.weight_decay, sgd.nesterov) == (0.1, 0.9, 5e-4, False)
    assert training.schedule == Piecewise(milestones=(0.5, 0.75), factor=0.1)
    assert training.attack == TrainingAttack(steps=10, step_size=2 / 255, random_start=True, batch_norm="train")
    assert Protocol(**MINIMAL).dataset.validation == 1000


def test_a_name_stands_for_a_mapping():
    short = Protocol(**{**MINIMAL, "training": {"epochs": 1, "augmentation": ["crop", "flip"], "schedule": "cyclic"}})
    long = {"augmentation": [{"name": "crop"}, {"name": "flip"}], "schedule": {"name": "cyclic"}, "epochs": 1}
    assert short == Protocol(**{**MINIMAL, "dataset": {"name": "digits"}, "training": long})


@pytest.mark.parametrize(
    ("attack", "regime"),
    [({"name": "none"}, "natural"), ({"steps": 1}, "single_step"), ({"steps": 2}, "multi_step"), ("none", "natural")],
)
def test_regime_of_a_training_attack(attack, regime):
    assert Training(epochs=1, attack=attack).attack.regime == regime


def test_titles():
    assert [attack.title for attack in (Clean(), PGD(steps=50), AutoAttack())] == ["Clean", "PGD-50", "AutoAttack"]
    l2, larger = Threat(norm="l2", eps=0.5), Threat(norm="linf", eps=16 / 255)
    titles = [attack.title for attack in (FGSM(threat=larger), PGD(threat=l2), CW(threat=l2), AutoAttack(threat=l2))]
    assert titles == ["FGSM (Linf 16/255)", "PGD-20 (L2 0.5)", "CW-20 (L2 0.5)", "AutoAttack (L2 0.5)"]


def test_the_step_of_an_unseen_threat_can_cross_its_ball():
    l2 = {"norm": "l2", "eps": 0.5}
    assert PGD.model_validate({"threat": l2, "steps": 20}).step_size == 2.5 * 0.5 / 20
    assert CW.model_validate({"threat": l2, "steps": 1}).step_size == 0.5
    assert PGD.model_validate({"threat": l2, "step_size": 0.01}).step_size == 0.01
    again = PGD.model_validate(PGD.model_validate({"threat": l2}).model_dump(mode="json"))
    assert again == PGD.model_validate({"threat": l2})


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (Threat, {"norm": "linf", "eps": 8}),
        (Piecewise, {"milestones": [0.75, 0.5]}),
        (Piecewise, {"milestones": [0.5, 0.5]}),
        (Piecewise, {"milestones": [1.0]}),
        (Evaluation, {"final": ["clean", {"name": "pgd"}, "pgd"]}),
        (Evaluation, {"final": []}),
    ],
)
def test_what_makes_no_protocol(settings, values):
    with pytest.raises(ValidationError):
        settings(**values)


def test_an_l2_ball_may_be_larger_than_the_pixel_range():
    assert Threat(norm="l2", eps=1.5).eps == 1.5


def test_settings_that_are_none_leave_no_trace_in_the_identity():
    identity = Protocol(**MINIMAL, evaluation={"final": [{"name": "pgd", "images": None}]}).identity()
    assert "images" not in identity["evaluation"]["final"][0]
    assert identity["threat"] == {"norm": "linf", "eps": 8 / 255}


@pytest.mark.parametrize(
    ("section", "kinds"),
    [
        ("Optimisers", (SGD, Adam, AdamW, LAMB)),
        ("Schedules", (Piecewise, Cyclic, OneCycle, Cosine, Constant)),
        ("Augmentations", (Crop, Flip, Rotate, Cutout, RandomErasing, Enhance, Tones, Mix)),
    ],
)
def test_the_page_on_suites_has_every_choice_with_its_keys(section, kinds):
    page = (Path(__file__).parents[2] / "docs" / "suites.md").read_text()
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    for kind in kinds:
        for name in get_args(kind.model_fields["name"].annotation):
            assert f"`{name}`" in text
        assert all(re.search(rf"`{key}\b", text) for key in kind.model_fields if key != "name")
