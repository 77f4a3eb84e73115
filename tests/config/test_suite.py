import json

import pytest
import yaml

from bench.config import suite
from bench.config.protocol import Protocol
from bench.config.suite import Suite, find_suite, load_suite, select_cells, shipped_suites
from bench.errors import BenchError
from bench.registry import METHODS

# --- what bad input gets ----------------------------------------------------------------------------------------------

EPOCHS = "epochs: 2"
WRONG = {
    "epochs: 2": {
        "epochz: 2": "6: training.epochz: unknown key 'epochz'; did you mean 'epochs'?",
        "epochs: -2": "6: training.epochs: must be at least 1 (got -2)",
        "epochs: 1000000": "6: training.epochs: must be at most 100000 (got 1000000)",
        "epochs: 2.5": "6: training.epochs: must be a whole number (got 2.5)",
        "epochs: many": "6: training.epochs: must be a whole number (got 'many')",
        "epochs: [2]": "6: training.epochs: must be a whole number",
        "epochs:": "6: training.epochs: must be a whole number (got nothing)",
        "epochs: true": "6: training.epochs: must be a number, not true or false",
    },
    "model:": {
        "modell:": "3: modell: unknown key 'modell'; did you mean 'model'?",
    },
    "eps: 0.15": {
        "eps: eight": "4: threat.eps: 'eight' is not a number; write 0.05, 5e-4 or 8/255",
        "eps: 8": "4: threat: eps 8 exceeds the pixel range [0, 1]; write 8/255, not 8",
        "eps: 1": "4: threat.eps: must be at most 0.5 for pixels in [0, 1] (got 1); write 1/255, not 1",
        "eps: -8/255": "4: threat.eps: must be greater than 0 (got -0.03137254901960784)",
    },
    ", eps: 0.15": {
        "": "4: threat.eps: this key is required",
    },
    "model: small_cnn\n": {
        "": "1: model: this key is required",
    },
    "batch_size: 64": {
        "batch_size: 1098": ("7: training.batch_size: only 1097 images are left to train on, too few for one batch"),
        "augmentation: [flip, {name: crop, padding: 8}]": (
            "7: training.augmentation.1.padding: an image of 8x8 pixels cannot be reflected into a border of 8"
        ),
        "augmentation: [blur]": (
            "7: training.augmentation.0: unknown name 'blur'; known: autocontrast, brightness, contrast, crop, cutmix, "
            "cutout, equalize, flip, mixup, random_erasing, rotate, saturation, sharpness"
        ),
        "augmentation: [mixup, flip]": (
            "7: training.augmentation: only the last augmentation may be 'mixup' or 'cutmix'"
        ),
        "augmentation: [brightness]": "7: training.augmentation.0.factors: this key is required",
        "augmentation: [{name: contrast, factors: [1.5, 0.5]}]": (
            "7: training.augmentation.0.factors: the smallest value 1.5 exceeds the largest, 0.5"
        ),
        "augmentation: flip": "7: training.augmentation: must be a list (got 'flip')",
        "precision: fp16": "7: training.precision: must be 'fp32' or 'bf16' (got 'fp16')",
        "optimizer: adamm": "7: training.optimizer: unknown name 'adamm'; did you mean 'adam'?",
        "optimizer: {name: adam, momentum: 0.9}": (
            "7: training.optimizer.momentum: unknown key 'momentum'; known: betas, eps, lr, name, weight_decay, "
            "weight_decay_on"
        ),
        "optimizer: {lr: -1}": "7: training.optimizer.lr: must be greater than 0 (got -1.0)",
        "schedule: {name: cosine, warmup: 2}": (
            "5: training: schedule.warmup: 2 epochs leave none of the 2 for the full rate"
        ),
        "extra_data: {file: extra.npz, share: 0.5}": "7: training.extra_data.digest: this key is required",
        f"extra_data: {{file: ../extra.npz, share: 0.5, digest: {'a' * 64}}}": (
            "7: training.extra_data.file: the path must stay below the data root: no '..' and no leading '/'"
        ),
        f"extra_data: {{file: extra.npz, share: 0.001, digest: {'a' * 64}}}": (
            "5: training: extra_data.share: 0.001 of 128 images leaves no image of one kind"
        ),
        f"last_batch: keep\n  extra_data: {{file: extra.npz, share: 0.5, digest: {'a' * 64}}}": (
            "5: training: last_batch: 'keep' is for training without extra_data"
        ),
        "schedule: piecewize": "7: training.schedule: unknown name 'piecewize'; did you mean 'piecewise'?",
        "schedule: {name: piecewise, milestones: [0.5, 50]}": (
            "7: training.schedule.milestones.1: must be less than 1 (got 50)"
        ),
        "schedule: {name: piecewise, milestones: [0.5, 0.2]}": (
            "7: training.schedule.milestones: milestones must be increasing"
        ),
        "schedule: {name: piecewise, factr: 0.5}": (
            "7: training.schedule.factr: unknown key 'factr'; did you mean 'factor'?"
        ),
    },
    "name: pgd, steps: 2, step_size: 0.1}\neval": {
        "name: fgsm}\neval": "8: training.attack.name: must be 'pgd' or 'none' (got 'fgsm')",
        "random_start: maybe}\neval": "8: training.attack.random_start: must be true or false (got 'maybe')",
    },
    "{name: digits, validation: 200}": {
        "{name: digit, validation: 200}": "2: dataset.name: unknown dataset 'digit'; did you mean 'digits'?",
        "digitz": "2: dataset: unknown dataset 'digitz'; did you mean 'digits'?",
        "{name: digits, validation: 1297}": (
            "2: dataset.validation: 1297 validation images leave none to train on: digits has 1297 training images"
        ),
        "{name: digits, validation: 0}": "2: dataset.validation: must be at least 1 (got 0)",
        "{name: digits, validation: 2.5}": "2: dataset.validation: must be a whole number (got 2.5)",
        "{name: digits, validation: true}": "2: dataset.validation: must be a whole number (got True)",
        "{name: digits, validation: 9-3}": "2: dataset.validation: the range 9-3 ends before it begins",
        "{name: digits, validation: some}": (
            "2: dataset.validation: invalid index range 'some'; expected 0-3999 or 0-99,500-599"
        ),
        "{name: digits, subset: {train: '1,1'}}": "2: dataset.subset.train: duplicate index 1",
        "{name: digits, subset: {test: 0-500}}": "2: dataset: subset.test: index 500 is beyond the 500 images",
        "{name: digits, resize: 3}": "2: dataset: resize: 3 does not divide the side of 8x8 pixels",
        "{name: digits, mean: [33]}": (
            "2: dataset: a mean of 33 is too large for pixels in [0, 1]; divide means and standard deviations in units "
            "of 0 to 255 by 255"
        ),
        "{name: digits, std: [1, 1]}": "2: dataset: 'std' needs 1 values, one a channel",
        "{name: npz, std: [1], files: {path: x, classes: 4, shape: [1, 8, 8]}}": (
            "2: dataset: 'std' belongs below 'files'"
        ),
        "{name: digits, digest: abc}": "2: dataset.digest: must match ^[0-9a-f]{64}$ (got 'abc')",
        "{name: digits, files: {path: x, classes: 2, shape: [1, 8, 8]}}": (
            "2: dataset: dataset 'digits' has files of its own; remove the key 'files'"
        ),
        "{name: digits, files: {path: ../x, classes: 2, shape: [1, 8, 8]}}": (
            "2: dataset.files.path: the path must stay below the data root: no '..' and no leading '/'"
        ),
        "{name: digits, files: {path: x/../../y, classes: 2, shape: [1, 8, 8]}}": (
            "2: dataset.files.path: the path must stay below the data root: no '..' and no leading '/'"
        ),
        "{name: digits, files: {path: x, classes: 2, shape: [1, 8, 8], std: [1, 1]}}": (
            "2: dataset.files: 'std' needs 1 values, one a channel"
        ),
        "{name: npz, validation: 2, files: {path: x, classes: 4, shape: [1, 8, 8], mean: [33.3]}}": (
            "2: dataset.files: a mean of 33.3 is too large for pixels in [0, 1]; divide means and standard deviations "
            "in units of 0 to 255 by 255"
        ),
        "{name: npz, validation: 2, files: {path: x, classes: 4, shape: [1, 8, 8], mean: [0], std: [64]}}": (
            "2: dataset.files: a standard deviation of 64 is too large for pixels in [0, 1]; divide means and standard "
            "deviations in units of 0 to 255 by 255"
        ),
        "{name: digits, files: {path: x, classes: 2, shape: [8, 8]}}": (
            "2: dataset.files.shape.0: must be at most 4 (got 8)"
        ),
    },
    "norm: linf, eps: 0.15": {
        "norm: l2, eps: 128": "4: threat.eps: must be at most 4 for pixels in [0, 1] (got 128); write 128/255, not 128",
        "norm: l2, eps: 4.01": (
            "4: threat.eps: must be at most 4 for pixels in [0, 1] (got 4.01); write 4.01/255, not 4.01"
        ),
    },
    "steps: 2, step_size: 0.1}\neval": {
        "steps: 2, step_size: 2}\neval": (
            "8: training.attack.step_size: 2 exceeds the diameter of the ball of radius 0.15; write 2/255, not 2"
        ),
    },
    "{attack: {name: pgd, steps: 2, step_size: 0.1}}": {
        "{attack: {name: pgd, step_size: 0.31}}": (
            "10: evaluation.track.attack.step_size: 0.31 exceeds the diameter of the ball of radius 0.15; "
            "write at most 0.3"
        ),
        "{attack: {name: pgd, threat: {norm: l2, eps: 0.5}}}": (
            "10: evaluation.track.attack: 'threat' is for final attacks; tracking uses the protocol's threat"
        ),
        "{around: 2}": ("10: evaluation.track: 'around' needs 'every'; without it every epoch is tracked"),
        "{every: 1}": "10: evaluation.track.every: must be at least 2 (got 1)",
        "{attack: {name: pgd, images: 5}}": (
            "10: evaluation.track.attack: 'images' is for final attacks; tracking measures every image"
        ),
    },
    "small_cnn": {
        "smal_cnn": "3: model: unknown model 'smal_cnn'; did you mean 'small_cnn'?",
    },
    "{name: pgd, steps: 3, step_size: 0.05}": {
        "{name: pdg}": "11: evaluation.final.1: unknown name 'pdg'; did you mean 'pgd'?",
        "{name: cw, step_size: 1}": (
            "11: evaluation.final.1.step_size: 1 exceeds the diameter of the ball of radius 0.15; write 1/255, not 1"
        ),
        "{steps: 3}": "11: evaluation.final.1: this needs a key 'name'",
        "{name: pgd, stepz: 3}": "11: evaluation.final.1.stepz: unknown key 'stepz'; did you mean 'steps'?",
        "{name: pgd, steps: five}": "11: evaluation.final.1.steps: must be a whole number (got 'five')",
        "clean": "11: evaluation.final: duplicate attack",
        "joint": "11: evaluation.final: 'joint' needs two other attacks or more",
        "{name: corruptions, severity: 6}": "11: evaluation.final.1.severity: must be at most 5 (got 6)",
        "{name: corruptions, kinds: [fog]}": (
            "11: evaluation.final.1: 'fog' is not computed; give the 'path' of published images, or leave it out"
        ),
        "{name: corruptions, path: x, kinds: [fog, fog]}": "11: evaluation.final.1: duplicate corruption",
        "{name: corruptions, path: ../x}": (
            "11: evaluation.final.1.path: the path must stay below the data root: no '..' and no leading '/'"
        ),
        "{name: pgd, threat: {norm: l3, eps: 1}}": (
            "11: evaluation.final.1.threat.norm: must be 'linf' or 'l2' (got 'l3')"
        ),
        "{name: fgsm, threat: {norm: l2, eps: 12}}": (
            "11: evaluation.final.1.threat.eps: must be at most 4 for pixels in [0, 1] (got 12); write 12/255, not 12"
        ),
        "{name: cw, step_size: 1, threat: {norm: linf, eps: 0.3}}": (
            "11: evaluation.final.1.step_size: 1 exceeds the diameter of the ball of radius 0.3; write 1/255, not 1"
        ),
        "{name: autoattack, threat: {norm: linf, eps: 0.15}}": (
            "11: evaluation.final.1.threat: this is the threat of the suite; remove the key, or give another ball"
        ),
    },
    "[clean, {name: pgd, steps: 3, step_size: 0.05}]": {
        "[]": "11: evaluation.final: must not be empty",
    },
    "[pgd_at]": {
        "[pgd_att]": "12: methods.0: unknown method 'pgd_att'; did you mean 'pgd_at'?",
        "pgd_at": "12: methods: must be a list (got 'pgd_at')",
        "[]": "12: methods: must not be empty",
        "[~]": "12: methods.0: must be a mapping of keys to values (got nothing)",
        "[{label: A}]": "12: methods.0.name: this key is required",
        "[{name: pgd_at, label: ''}]": "12: methods.0.label: must not be empty (got '')",
        "[{name: pgd_at, params: {eps: 3}}]": "12: methods.0.params.eps: unknown key 'eps'",
        "[pgd_at, pgd_at]": ("12: methods.1: 'PGD-AT' is the same method with the same parameters as an earlier row"),
        "[pgd_at, {name: pgd_at, label: B}]": (
            "12: methods.1: 'B' is the same method with the same parameters as an earlier row"
        ),
        "[pgd_at, {name: early_stopping, label: PGD-AT}]": (
            "12: methods.1: two rows are called 'PGD-AT'; give one of them another 'label'"
        ),
    },
    "seeds: [0]": {
        "seeds: [0, 0]": "13: seeds: duplicate seed",
        "seeds: [0, -1]": "13: seeds.1: must be at least 0 (got -1)",
        "seeds: [3000000000]": "13: seeds.0: must be less than 2147483648 (got 3000000000)",
        "seeds: 0": "13: seeds: must be a list (got 0)",
        "seeds: [false]": "13: seeds.0: must be a whole number (got False)",
        "execution: {threads: 0}": "13: execution.threads: must be at least 1 (got 0)",
    },
    "name: tiny": {
        "name: ../tiny": "1: name: must match ^[A-Za-z0-9][A-Za-z0-9_-]*$ (got '../tiny')",
        f"name: {'a' * 61}": f"1: name: must have at most 60 characters (got '{'a' * 56}...)",
        "name: 2024-12-05": "1: '2024-12-05' is a date in YAML 1.1; quote it",
        '"na\\nme\\e[2J": tiny': "1: na me [2J: unknown key 'na\\nme\\x1b[2J'; did you mean 'name'?",
    },
}


@pytest.mark.parametrize(
    ("old", "new", "sentence"), [(old, *case) for old, cases in WRONG.items() for case in cases.items()]
)
def test_one_sentence_with_file_line_and_key(load, tmp_path, old, new, sentence):
    with pytest.raises(BenchError) as error:
        load({old: new})
    assert str(error.value) == f"{tmp_path / 'suite.yaml'}:{sentence}"


@pytest.mark.parametrize(
    "changes",
    [
        {"steps: 2, step_size: 0.1}\neval": "steps: 1, step_size: 0.1875}\neval"},  # FGSM-RS: 1.25 times the radius
        {"steps: 2, step_size: 0.1}\neval": "steps: 1, step_size: 0.3}\neval"},
        {"norm: linf, eps: 0.15": "norm: l2, eps: 2.5"},
        {
            "eps: 0.15": "eps: 0.002",  # half of the default step, which is nobody's mistake
            "step_size: 0.1}\neval": "random_start: true}\neval",
            "step_size: 0.1}}": "random_start: true}}",
            "step_size: 0.05": "random_start: true",
        },
    ],
    ids=["single step", "diameter", "l2", "default step"],
)
def test_radii_and_steps_of_publications_are_accepted(load, changes):
    load(changes)


def test_autoattack_needs_enough_classes(load):
    npz = "{name: npz, validation: 2, files: {path: x, classes: 3, shape: [1, 8, 8]}}"
    files = {"{name: digits, validation: 200}": npz}
    few = "AutoAttack's targeted attacks need at least 4 classes, not 3; use pgd instead"
    with pytest.raises(BenchError, match=f"suite.yaml:11: evaluation.final.1: {few}"):
        load({**files, "{name: pgd, steps: 3, step_size: 0.05}": "autoattack"})
    load({**files, "{name: pgd, steps: 3, step_size: 0.05}": "{name: autoattack, attacks: [apgd-ce, square]}"})


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        (None, "no such file"),
        ("1 / 0", "does not import: ZeroDivisionError: division by zero"),
        ("METHODS = {'pgd_at': 1}", "the method name 'pgd_at' is registered already"),
    ],
)
def test_a_wrong_plugin_names_its_place_in_the_suite(load, tmp_path, tiny_suite, plugin, problem):
    if plugin:
        (tmp_path / "mine.py").write_text(plugin)
    with pytest.raises(BenchError) as error:
        load(tiny_suite + "plugins:\n  - mine.py\n")
    separator = " " if problem.startswith("does") else ": "
    place = f"{tmp_path / 'suite.yaml'}:15: plugins.0"
    assert str(error.value) == f"{place}: plug-in {(tmp_path / 'mine.py').resolve()}{separator}{problem}"


def test_suites_are_found_by_path_and_by_shipped_name(tmp_path, monkeypatch, tiny_suite):
    assert load_suite("quickstart").suite.name == "quickstart"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ci").mkdir()  # a folder of that name does not hide the suite
    assert find_suite("ci") == shipped_suites()["ci"]
    (tmp_path / "mine").write_text(tiny_suite)
    assert load_suite("mine").suite.name == "tiny"


@pytest.mark.parametrize(
    ("name", "closest"), [("rice2020", "papers/pytorch_robust_rice2020, papers/rice2020_cifar10, "), ("nope", "more, ")]
)
def test_of_many_suites_the_closest_are_named(name, closest):
    with pytest.raises(BenchError) as error:
        load_suite(name)
    start = f"unknown suite '{name}'; the closest of {len(shipped_suites())}: "
    assert str(error.value).startswith(start + closest)
    assert str(error.value).count(", ") == 4


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("quickstrt", "unknown suite 'quickstrt'; did you mean 'quickstart'?"),
        ("missing.yaml", "missing.yaml: no such suite file"),
        ("folder/missing.yaml", "folder/missing.yaml: no such suite file"),
    ],
)
def test_a_suite_that_is_not_there(tmp_path, monkeypatch, name, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError) as error:
        load_suite(name)
    assert str(error.value) == sentence


# --- identity ---------------------------------------------------------------------------------------------------------


def test_the_identity_of_a_cell_is_what_it_was(load):
    # If this fails, every stored run would be trained again: change identities on purpose only, never by the way.
    cell = load().cells[0]
    assert cell.fingerprint == "c57a16bb1c92e8d7e211338b86f20780616376e7814cdd1c403400621a9c2963"
    assert cell.training_fingerprint == "5a6fc09250700beeb35e7b4cb02332ece42442d3a20c8867149edd735359448d"
    assert cell.protocol.fingerprint == "435f68edb96e54296662c99a2ab869dd5c20c40eaf9cf9e64012e24c8d74245a"


def test_a_fingerprint_is_the_digest_of_what_cell_json_says(load):
    cell = load().cells[0]
    again = suite.Cell.model_validate(json.loads(json.dumps(cell.model_dump(mode="json"))))
    assert again == cell
    assert again.fingerprint == cell.fingerprint
    assert json.loads(json.dumps(cell.identity())) == cell.identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"name: tiny": "name: other\ndescription: Something else"},
        {"[pgd_at]": "[{name: pgd_at, label: Baseline}]"},
        {"[pgd_at]": "[early_stopping, {name: pgd_at, params: {}}]"},
        {"seeds: [0]": "seeds: [1, 0]"},
        {"seeds: [0]": "execution: {threads: 2}"},
        {"seeds: [0]": "plugins: [plugin.py]"},
        {"eps: 0.15": "eps: 15/100"},
        {"eps: 0.15": "eps: '1.5e-1'"},
        {"{norm: linf, eps: 0.15}": "{eps: 0.15, norm: linf}"},
        {"  epochs: 2\n  batch_size: 64\n": "  batch_size: 64\n  schedule: piecewise\n  epochs: 2\n"},
        {"[clean,": "[{name: clean},"},
        {"validation: 200": "validation: '200'"},
        {"batch_size: 64": "batch_size: 64\n  augmentation: []"},
    ],
)
def test_what_changes_no_fingerprint(load, tmp_path, changes):
    before = load().cells[0]
    (tmp_path / "plugin.py").write_text("MODELS = {'another': 1}")
    after = [cell for cell in load(changes).cells if (cell.method.name, cell.seed) == ("pgd_at", 0)]
    assert [cell.fingerprint for cell in after] == [before.fingerprint]
    assert after[0].training_fingerprint == before.training_fingerprint


BASE = yaml.safe_load("""
name: base
dataset: {name: digits, validation: 200, split_seed: 0}
model: small_cnn
threat: {norm: linf, eps: 0.1}
training:
  epochs: 10
  augmentation: [crop, flip, rotate]
methods: [pgd_at]
""")

FILES = {"path": "mine", "classes": 10, "shape": [1, 8, 8]}

EXTRA = {"file": "extra.npz", "digest": "0" * 64, "share": 0.5}

CHANGES = {
    "dataset.name": "cifar10",
    "dataset.validation": 201,
    "dataset.validation ": "0-199",
    "dataset.validation  ": "none",
    "dataset.mean": [0.4],
    "dataset.std": [0.4],
    "dataset.split_seed": 1,
    "dataset.subset": {},
    "dataset.subset.train": "0-500",
    "dataset.subset.test": "0-99",
    "dataset.resize": 4,
    "dataset.digest": "0" * 64,
    "dataset.files": FILES,
    "dataset.files.path": "other",
    "dataset.files.classes": 11,
    "dataset.files.shape": [1, 8, 9],
    "dataset.files.mean": [0.4],
    "dataset.files.std": [0.4],
    "dataset.files.test": 10,
    "model": "preact_resnet18",
    "threat.norm": "l2",
    "threat.eps": 0.11,
    "training.epochs": 11,
    "training.batch_size": 64,
    "training.precision": "bf16",
    "training.tf32": False,
    "training.clean_pass": "after_step",
    "training.last_batch": "keep",
    "training.optimizer.lr": 0.2,
    "training.optimizer.momentum": 0.8,
    "training.optimizer.weight_decay": 1e-4,
    "training.optimizer.nesterov": True,
    "training.optimizer.weight_decay_on": "weights",
    "training.optimizer": "adam",
    "training.optimizer ": "adamw",
    "training.optimizer.betas": [0.9, 0.99],
    "training.optimizer.eps": 1e-7,
    "training.schedule": "constant",
    "training.schedule ": "cosine",
    "training.schedule.warmup": 1,
    "training.schedule.start": 0.1,
    "training.schedule.end": 0.1,
    "training.schedule.milestones": [0.5],
    "training.schedule.factor": 0.2,
    "training.schedule.peak": 0.4,
    "training.attack.name": "none",
    "training.attack.steps": 9,
    "training.attack.step_size": 0.01,
    "training.attack.random_start": False,
    "training.attack.batch_norm": "eval",
    "training.augmentation": ["flip", "crop", "rotate"],
    "training.augmentation.0.padding": 3,
    "training.augmentation.0.mode": "zero",
    "training.augmentation.2.degrees": 10,
    "training.extra_data": EXTRA,
    "training.extra_data.file": "other.npz",
    "training.extra_data.digest": "1" * 64,
    "training.extra_data.share": 0.6,
    "training.extra_data.label_smoothing": 0.1,
    "training.augmentation.0.size": 8,
    "training.augmentation.0.probability": 0.1,
    "training.augmentation.0.area": [0.1, 0.2],
    "training.augmentation.0.ratio": [0.1, 0.2],
    "training.augmentation.0.factors": [0.5, 1],
    "training.augmentation.2.alpha": 0.2,
    "evaluation.track.test": False,
    "evaluation.track.every": 5,
    "evaluation.track": {"every": 5, "around": 0},
    "evaluation.track.attack.steps": 9,
    "evaluation.track.attack.step_size": 0.01,
    "evaluation.track.attack.random_start": False,
    "evaluation.final": ["clean", "pgd"],
    "evaluation.final.1.steps": 19,
    "evaluation.final.1.step_size": 0.01,
    "evaluation.final.1.random_start": False,
    "evaluation.final.1.images": 100,
    "evaluation.final.1.restarts": 5,
    "evaluation.final.1.iterate": "worst",
    "evaluation.final.1.name": "cw",
    "evaluation.final.1.threat": {"norm": "l2", "eps": 0.5},
    "evaluation.final    ": ["clean", "pgd", "autoattack", {"name": "corruptions", "severity": 3}],
    "evaluation.final     ": ["clean", "pgd", "autoattack", {"name": "corruptions", "path": "CIFAR-10-C"}],
    "evaluation.final      ": ["clean", "pgd", "autoattack", {"name": "corruptions", "kinds": ["contrast"]}],
    "evaluation.final   ": ["clean", "pgd", "autoattack", "joint"],
    "evaluation.final.2.images": 100,
    "evaluation.final.2.batch_size": 249,
    "evaluation.final.2.version": "standard-bf16-confirmed",
    "evaluation.final.2.attacks": ["apgd-ce", "apgd-t"],
    "evaluation.final.2.attacks ": ["apgd-t", "apgd-ce"],
    "evaluation.final ": ["fgsm", "pgd", "autoattack"],
    "evaluation.final  ": [{"name": "fgsm", "images": 100}, "pgd", "autoattack"],
}

OF_ANOTHER = {
    "training.optimizer.betas": "adam",
    "training.optimizer.eps": "adamw",
    "training.augmentation.0.size": "cutout",
    "training.augmentation.0.probability": "equalize",
    "training.augmentation.0.area": "random_erasing",
    "training.augmentation.0.ratio": "random_erasing",
    "training.augmentation.0.factors": "contrast",
    "training.augmentation.2.alpha": "mixup",
    "training.schedule.peak": "cyclic",
    "training.schedule.start": "one_cycle",
    "training.schedule.end": "one_cycle",
}
"""Settings of another optimiser, schedule or augmentation than that of BASE."""


def changed(path: str) -> Protocol:
    """Return the protocol of BASE, written out in full, with one of CHANGES."""
    data = Protocol.model_validate({key: BASE[key] for key in BASE if key not in {"name", "methods"}}).model_dump()
    *parents, last = [int(key) if key.isdigit() else key for key in path.strip().split(".")]
    group = data
    for optional, content in (("subset", {}), ("files", FILES), ("extra_data", EXTRA)):
        if optional in parents:
            data[parents[0]][optional] = dict(content)
    for key in parents:
        group = group[key]
    if path in OF_ANOTHER:
        group.clear()
        group["name"] = OF_ANOTHER[path]
    group[last] = CHANGES[path]
    return Protocol.model_validate(data)


def test_every_setting_of_the_protocol_changes_the_fingerprint():
    base = Protocol.model_validate({key: BASE[key] for key in BASE if key not in {"name", "methods"}})
    prints = {path: changed(path).fingerprint for path in CHANGES}
    assert len({base.fingerprint, *prints.values()}) == len(CHANGES) + 1
    known = {key for group in Protocol.model_json_schema()["$defs"].values() for key in group["properties"]}
    whole = {
        "name",
        "attack",
        "optimizer",
        "track",
        "severity",
        "path",
        "kinds",
        "around",
    }  # the last ones within a list
    untested = known - {path.strip().rpartition(".")[2] for path in CHANGES} - whole
    assert not untested, f"add to CHANGES: {untested}"


def test_the_defaults_of_later_settings_may_be_written_out(load):
    written = "training:\n  clean_pass: none\n  last_batch: drop\n  tf32: true\n  optimizer: {weight_decay_on: all}\n"
    assert load({"training:\n": written}).suite.protocol.fingerprint == load({}).suite.protocol.fingerprint
    with pytest.raises(BenchError, match=r"training\.clean_pass: must be 'none' or 'after_step' \(got 'before'\)"):
        load({"training:\n": "training:\n  clean_pass: before\n"})


def test_the_weights_depend_on_all_but_the_final_attacks(load):
    def prints(path):
        cell = load().cells[0].model_copy(update={"protocol": changed(path)})
        return cell.fingerprint, cell.training_fingerprint

    cells = {path: prints(path) for path in CHANGES}
    finals = {path for path in CHANGES if path.startswith("evaluation.final")}
    assert len({cells[path][0] for path in CHANGES}) == len(CHANGES)
    assert len({cells[path][1] for path in finals}) == 1
    assert len({cells[path][1] for path in CHANGES}) == len(CHANGES) - len(finals) + 1


def test_mixed_labels_need_a_method_that_reads_soft_labels(load, tmp_path):
    mixed = {"batch_size: 64": "batch_size: 64\n  augmentation: [cutmix]"}
    assert load(mixed).suite.training.soft_labels
    with pytest.raises(BenchError) as error:
        load({**mixed, "[pgd_at]": "[pgd_at, mart]"})
    assert str(error.value) == (
        f"{tmp_path / 'suite.yaml'}:13: methods.1: 'mart' needs one label for each image; remove the augmentation "
        "'cutmix' from the training, which mixes labels, or the method"
    )


@pytest.mark.parametrize("update", [{"version": 2}, {"name": "other"}, {"params": {"patience": 21}}])
def test_the_method_is_part_of_the_identity(load, update):
    cell = load({"[pgd_at]": "[early_stopping]"}).cells[0]
    other = cell.model_copy(update={"method": cell.method.model_copy(update=update)})
    assert other.fingerprint != cell.fingerprint
    assert other.training_fingerprint != cell.training_fingerprint


def test_the_seed_is_part_of_the_identity(load):
    assert len({cell.fingerprint for cell in load({"seeds: [0]": "seeds: [0, 1, 2]"}).cells}) == 3


# --- cells ------------------------------------------------------------------------------------------------------------


def test_cells_come_in_the_order_of_the_file(load):
    loaded = load({"[pgd_at]": "[early_stopping, {name: pgd_at, label: Base}]", "seeds: [0]": "seeds: [1, 0]"})
    assert [str(cell) for cell in loaded.cells] == [
        "Early stopping seed 1",
        "Early stopping seed 0",
        "Base seed 1",
        "Base seed 0",
    ]
    assert {cell.suite for cell in loaded.cells} == {"tiny"}


PLUGIN = """
from typing import ClassVar

from bench.training.method import Method
from bench.config.hyperparameters import MethodInfo, MethodParams, CanonicalValue, hyperparameter

class MineParams(MethodParams):
    alpha: float = hyperparameter(
        0.1, unit="1", provenance="paper", by_dataset={"digits/multi_step": CanonicalValue(0.2, "secondary")}
    )
    beta: int = hyperparameter(3, unit="epochs", provenance="code", ge=1)
    teacher: str = hyperparameter("resnet", unit="-", provenance="paper")

class Mine(Method[MineParams]):
    info = MethodInfo(name="mine", title="Mine", description="", paper="", year=2024, version=4)
    Params = MineParams

class NeedyParams(MethodParams):
    beta: int = hyperparameter(3, unit="epochs", provenance="code", ge=1)
    teacher: str = hyperparameter(unit="-", provenance="paper")

class Needy(Method[NeedyParams]):
    info = MethodInfo(name="needy", title="Needy", description="", paper="", year=2024)
    Params = NeedyParams

class NarrowParams(MethodParams):
    training_radius: ClassVar = 0.5

class Narrow(Method[NarrowParams]):
    info = MethodInfo(name="narrow", title="Narrow", description="", paper="", year=2024)
    Params = NarrowParams

METHODS = {"mine": Mine, "needy": Needy, "narrow": Narrow}
"""


@pytest.fixture
def mine(tmp_path):
    """The line that gives a suite the method `mine`."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    return "plugins: [mine.py]\n"


@pytest.mark.parametrize(
    ("params", "values", "custom", "origin"),
    [
        ("", (0.2, 3, "resnet"), False, "secondary"),
        ("alpha: 0.2, beta: 3", (0.2, 3, "resnet"), False, "secondary"),
        ("alpha: 0.3", (0.3, 3, "resnet"), True, "code"),
        ("beta: 4", (0.2, 4, "resnet"), True, "secondary"),
        ("alpha: 0.3, beta: 4", (0.3, 4, "resnet"), True, "paper"),
        ("alpha: 0.3, beta: 4, teacher: a", (0.3, 4, "a"), True, None),
    ],
)
def test_parameters_are_resolved(load, tiny_suite, mine, params, values, custom, origin):
    row = f"[{{name: mine, params: {{{params}}}}}]"
    method = load(tiny_suite.replace("[pgd_at]", row) + mine).cells[0].method
    assert tuple(method.params.values()) == values
    assert (method.custom, method.origin) == (custom, origin)
    assert (method.name, method.version, method.label) == ("mine", 4, "Mine")


def test_a_value_that_has_no_canonical_one_makes_a_row_custom(load, tiny_suite, mine):
    method = load(tiny_suite.replace("[pgd_at]", "[{name: needy, params: {teacher: a}}]") + mine).cells[0].method
    assert (method.params, method.custom, method.origin) == ({"beta": 3, "teacher": "a"}, True, "code")


def test_a_row_without_parameters_of_its_own_is_canonical(load):
    method = load().cells[0].method
    assert (method.params, method.custom, method.origin) == ({}, False, None)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("needy", "teacher: this key is required"),
        ("{name: needy, params: {beta: 4}}", "teacher: this key is required"),
        ("{name: needy, params: {teacher: a, betta: 3}}", "betta: unknown key 'betta'; did you mean 'beta'?"),
        ("{name: needy, params: {teacher: a, beta: 0}}", "beta: must be at least 1 (got 0)"),
        ("{name: needy, params: {teacher: a, beta: true}}", "beta: must be a number, not true or false"),
        ("{name: needy, params: {teacher: 5}}", "teacher: must be text (got 5)"),
        ("{name: mine, params: {alpha: .nan}}", "alpha: must be a finite number (got nan)"),
        ("{name: mine, params: {alpha: -.inf}}", "alpha: must be a finite number (got -inf)"),
    ],
)
def test_a_wrong_parameter_is_one_sentence(load, tmp_path, tiny_suite, mine, row, problem):
    with pytest.raises(BenchError) as error:
        load(tiny_suite.replace("[pgd_at]", f"[pgd_at,\n  {row}]") + mine)
    assert str(error.value) == f"{tmp_path / 'suite.yaml'}:13: methods.1.params.{problem}"


def test_a_ball_smaller_than_the_protocols_is_refused(load, tmp_path, tiny_suite, mine):
    for row, problem in (
        ("narrow", ": 'narrow' states a training radius of 0.5 eps; it must be at least 1"),
        ("{name: rebat_pp, params: {radius: 0.9}}", ".params.radius: must be at least 1 (got 0.9)"),
    ):
        with pytest.raises(BenchError) as error:
            load(tiny_suite.replace("[pgd_at]", f"[pgd_at,\n  {row}]") + mine)
        assert str(error.value) == f"{tmp_path / 'suite.yaml'}:13: methods.1{problem}"


def test_select_cells(load):
    cells = load({"[pgd_at]": "[early_stopping, {name: pgd_at, label: Base}]", "seeds: [0]": "seeds: [0, 1]"}).cells
    assert select_cells(cells) == cells
    assert [str(cell) for cell in select_cells(cells, ["Base"], [1])] == ["Base seed 1"]
    assert [str(cell) for cell in select_cells(cells, ["pgd_at"])] == ["Base seed 0", "Base seed 1"]
    with pytest.raises(BenchError, match=r"^the suite has no method 'pgd-at'; did you mean 'pgd_at'\?$"):
        select_cells(cells, ["pgd-at"])
    with pytest.raises(BenchError, match=r"^the suite has no seed 7; it has 0, 1$"):
        select_cells(cells, [], [7])


# --- the shipped suites and the schema --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(name for name in shipped_suites() if "/" not in name))
def test_shipped_suites(name):
    loaded = load_suite(name)
    assert loaded.suite.name == name
    assert loaded.suite.description
    jsonschema = pytest.importorskip("jsonschema", reason="needs the package jsonschema")
    schema = Suite.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(shipped_suites()[name].read_text()), schema)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cifar10_small"])
def test_the_further_cures_stand_in_the_table_of_the_suite(name):
    cures, suite = load_suite(f"{name}_cures"), load_suite(name)
    assert cures.suite.protocol.fingerprint == suite.suite.protocol.fingerprint
    assert not {row.label for row in cures.methods} & {row.label for row in suite.methods}


def test_cures_has_every_method():
    assert {row.name for row in load_suite("cures").methods} == set(METHODS.names())


@pytest.mark.parametrize("wrong", ["epochz: 2", "epochs: 0", "epochs: 2\n  schedule: cosyne", "epochs: two"])
def test_the_schema_refuses_what_the_loader_refuses(tiny_suite, wrong):
    jsonschema = pytest.importorskip("jsonschema", reason="needs the package jsonschema")
    data = yaml.safe_load(tiny_suite.replace(EPOCHS, wrong))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, Suite.model_json_schema())
