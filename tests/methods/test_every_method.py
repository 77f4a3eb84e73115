"""What holds for the file of every registered method."""

import ast
import inspect
from pathlib import Path

import pytest

from bench.config.hyperparameters import PROVENANCES, MethodInfo, MethodParams
from bench.registry import METHODS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "methods").glob("*.py"))
OURS = [name for name in METHODS.names() if METHODS.get(name).__module__.partition(".")[0] == "methods"]


def test_the_methods_of_the_benchmark_are_registered():
    assert set(OURS) == {
        *("pgd_at", "early_stopping", "fomo", "dom_re", "dom_augmix", "dom_randaugment", "sat", "aft"),
        *("trades", "mart", "awp", "ema", "swa", "te", "natural", "natural_first", "label_smoothing"),
        *("bag_of_tricks", "mlcat_ls", "gairat", "self_adaptive", "meat", "rwp", "mlcat_wp", "trades_awp", "mart_awp"),
        *("rebat", "rebat_pp", "n_fgsm", "fgsm_rs", "grad_align", "kd_swa", "cutmix_ema", "idbh"),
        *("moat", "doubly_robust", "gaat", "persistency", "free_at", "wot"),
        *("coreset_craig", "coreset_gradmatch"),
    }


@pytest.mark.parametrize("name", METHODS.names())
def test_it_says_what_it_is(name):
    info = METHODS.get(name).info
    assert isinstance(info, MethodInfo)
    assert info.name == name
    assert all((info.title, info.description, info.paper))
    assert 2016 <= info.year <= 2026
    assert info.final_is_best == (name == "early_stopping")


@pytest.mark.parametrize("name", METHODS.names())
def test_every_parameter_says_where_it_comes_from(name):
    params = METHODS.get(name).Params
    assert issubclass(params, MethodParams)
    declared = params.hyperparameters()
    assert set(declared) == set(params.model_fields)
    for field, parameter in declared.items():
        assert parameter.unit, field
        assert parameter.note, field
        for provenance in (parameter.provenance, *(value.provenance for value in parameter.by_dataset.values())):
            assert provenance in PROVENANCES


@pytest.mark.parametrize(
    ("name", "parameter", "covered"),
    [
        ("grad_align", "weight", {"cifar10": 0.2, "svhn": 2.5}),
        ("mlcat_ls", "threshold", {"cifar10": 1.5}),
        ("mlcat_wp", "threshold", {"cifar10": 1.5}),
        ("rwp", "threshold", {"cifar10": 1.7, "cifar100": 4.0, "svhn": 1.7}),
        ("trades", "beta", {"cifar10": 6.0}),
        ("self_adaptive", "beta", {"cifar10": 6.0}),
        ("trades_awp", "beta", {"cifar10": 6.0, "cifar100": 6.0}),
        ("idbh", "shift", {"cifar10": 10 / 32, "svhn": 8 / 32}),
        ("idbh", "shapes", {"cifar10": 0.25, "svhn": 0.6}),
        ("idbh", "erasing", {"cifar10": 0.5, "svhn": 1.0}),
        ("idbh", "area", {"cifar10": 0.33, "svhn": 0.5}),
    ],
)
def test_a_value_that_depends_on_the_data_is_ours_where_the_code_has_none(name, parameter, covered):
    canonical = METHODS.get(name).Params.canonical
    for dataset in ("cifar10", "cifar100", "svhn", "tiny_imagenet", "digits"):
        found = canonical(dataset, "multi_step")[parameter]
        if dataset in covered:
            assert found == (covered[dataset], "code")
        else:
            assert found.provenance == "declared"


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("n_fgsm", "noise", 16),
        ("n_fgsm", "step", 8),
        ("fgsm_rs", "step", 10),
        ("grad_align", "step", 10),
        ("free_at", "step", 8),
        ("moat", "step", 10),
        ("rebat_pp", "radius", 10),
        ("rebat_pp", "steps", 12),
    ],
)
def test_a_length_in_pixel_values_or_a_number_of_steps_is_no_multiple(name, parameter, value):
    """Papers write 10/255 and 12 steps where the parameter is 1.25 eps and 1.2 of the protocol's steps."""
    with pytest.raises(ValueError, match=f"{parameter}\n.*less than or equal"):
        METHODS.get(name).Params(**{parameter: value})


@pytest.mark.parametrize("name", OURS)
def test_its_docstrings_cite_the_paper(name):
    kind = METHODS.get(name)
    assert kind.__doc__
    assert kind.Params.__doc__
    module = inspect.getdoc(inspect.getmodule(kind))
    assert module
    assert kind.info.paper.split(",")[0].split(" et al")[0] in module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_file_is_short_and_has_no_training_loop(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called, owner = node.func.attr, ast.unparse(node.func.value)
            assert called not in {"step", "zero_grad"}, f"line {node.lineno}: the optimiser is the trainer's"
            assert called != "backward" or owner == "super()", f"line {node.lineno}: a backward of its own"
