"""docs/datasets.md names every dataset, and what it shows works."""

import re
from pathlib import Path

import pytest
import yaml

from bench.config.protocol import DatasetSettings
from bench.data.dataset import dataset_of
from bench.registry import DATASETS

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_dataset_is_described(name):
    text, dataset = PAGE.read_text(), DATASETS.get(name)
    assert re.search(rf"^#+ .*\b{name}\b", text, re.MULTILINE)
    assert f"| `{name}` |" in text
    if not dataset.own_files:
        (row,) = re.findall(rf"^\| `{name}` \|.*", text, re.MULTILINE)
        stated = f"| {dataset.classes} (super-)?classes, {'x'.join(map(str, dataset.shape))} |"
        assert re.search(stated.replace("|", r"\|"), row)
        assert all(f"{count:,}" in row for count in (dataset.train_images, dataset.test_images) if count)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_valid(example):
    settings = DatasetSettings.model_validate(yaml.safe_load(example)["dataset"])
    dataset_of(settings).check_split()


def test_there_are_examples():
    assert len(EXAMPLES) > 4
