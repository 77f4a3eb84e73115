import numpy as np
import pytest
from PIL import Image

from bench.config.protocol import DatasetSettings
from bench.config.suite import load_suite
from bench.data.dataset import dataset_of
from bench.data.datasets import restricted_imagenet as module
from bench.data.datasets.restricted_imagenet import SUPER_CLASSES, synsets
from bench.errors import BenchError, NotFound
from bench.execution.driver import run_suite
from bench.execution.executor import ExecutorSettings
from bench.storage.run_folder import RunFolder

DOG, FROG, CAT = "n02085620", "n01641577", "n02123045"  # Chihuahua, bullfrog, tabby


def restricted(**settings):
    return dataset_of(DatasetSettings.model_validate({"name": "restricted_imagenet", "validation": 1, **settings}))


@pytest.fixture
def plant(tmp_path, draw):
    """Write a few small images of the synsets asked for, and return the root."""

    def plant(train=(FROG, DOG), val=(FROG, DOG), below="imagenet"):
        for number, synset in enumerate(train):
            for image in (7, 10026, 5 + number):
                draw(tmp_path / below / "train" / synset / f"{synset}_{image}.JPEG", size=(300, 260))
        for number, synset in enumerate(val):
            for image in (40, 31 - number):
                draw(tmp_path / below / "val" / synset / f"ILSVRC2012_val_{image:08}.JPEG", size=(256, 270))
        return tmp_path

    return plant


def located(root):
    """Return the files, whatever part they are."""
    with pytest.raises(BenchError) as error:
        restricted().locate(root)
    return restricted(digest=str(error.value).split("digest: ")[1][:64]).locate(root)


def test_the_super_classes_are_those_of_the_released_code():
    assert list(SUPER_CLASSES) == ["dog", "cat", "frog", "turtle", "bird", "monkey", "fish", "crab", "insect"]
    assert [len(indices) for indices in SUPER_CLASSES.values()] == [118, 5, 3, 5, 21, 18, 9, 4, 20]
    found = synsets()
    assert len(found) == 203
    assert list(found) == sorted(found)
    assert [found[synset] for synset in (DOG, CAT, FROG)] == [0, 1, 2]
    assert "n02084071" not in found  # `dog`, which is a synset above them and no class of ImageNet
    assert sum(label == 0 for label in found.values()) * 50 == 5900  # dogs are 58 % of the 10,150
    assert 50 * len(found) == module.TEST_IMAGES


@pytest.mark.parametrize("below", ["imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "."])
def test_where_it_may_lie(plant, below):
    found = located(plant(below=below))
    assert found.train.labels.tolist() == [2, 2, 2, 0, 0, 0]
    assert sorted(found.test.labels.tolist()) == [0, 0, 2, 2]


def test_images_are_in_the_order_of_their_names_and_carry_their_labels(plant):
    found = located(plant())
    names = [path.name for path in found.train.reader.paths]
    assert names == [f"{FROG}_{number}.JPEG" for number in (10026, 5, 7)] + [
        f"{DOG}_{number}.JPEG" for number in (10026, 6, 7)
    ]
    assert [(path.name[-7:-5], path.parent.name, label) for path, label in
            zip(found.test.reader.paths, found.test.labels, strict=True)] == [
        ("30", DOG, 0), ("31", FROG, 2), ("40", FROG, 2), ("40", DOG, 0)
    ]  # fmt: skip


def test_the_middle_of_the_scaled_image_is_cut_out(plant):
    source = located(plant()).test.reader
    with Image.open(source.paths[0]) as image:  # 256x270, so nothing is scaled
        middle = np.asarray(image.convert("RGB"))[23:247, 16:240]
    assert np.array_equal(source.load(np.array([0]))[0], middle.transpose(2, 0, 1))


def test_other_classes_of_imagenet_are_no_part_of_it(plant):
    root = plant()
    digest = located(root).digest()
    plant(train=("n01440764",), val=("n01440764",))  # tench
    assert located(root).digest() == digest
    assert located(root).unread() == []


def test_what_lies_beside_the_images_is_named(plant):
    root = plant()
    for name in (f"train/{DOG}/more/1.JPEG", f"val/{DOG}/1.npy", "val/dogs/1.JPEG", "val/loose.JPEG"):
        path = root / "imagenet" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    names = [f"train/{DOG}/more/1.JPEG", "val/dogs/1.JPEG", "val/loose.JPEG", f"val/{DOG}/1.npy"]
    assert located(root).unread() == [f"{root}/imagenet/{name}" for name in names]


def test_what_is_missing_is_named(plant):
    with pytest.raises(
        BenchError,
        match=r"imagenet is not all of Restricted ImageNet: train lacks 201 of the 203 synsets \((n\d+, ){5}...\); "
        r"val lacks 202 of the 203 synsets \((n\d+, ){5}...\); val has 2 images of these synsets instead of 10,150; "
        r"to use only these images, state 'digest: [0-9a-f]{64}' in the suite$",
    ):
        restricted().locate(plant(val=(DOG,)))


def test_the_whole_is_taken_without_a_digest(plant, monkeypatch):
    monkeypatch.setattr(module, "synsets", lambda: {FROG: 2, DOG: 0})
    monkeypatch.setattr(module, "TEST_IMAGES", 4)
    assert len(restricted().locate(plant()).test.labels) == 4


def test_validation_images_as_the_archive_has_them(plant, draw):
    root = plant(val=())
    draw(root / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(BenchError, match=r"val holds its images in one folder, as ImageNet's archive does; sort them"):
        restricted().locate(root)


@pytest.mark.parametrize(("train", "val", "part"), [((), (DOG,), "train"), ((DOG,), (), "val")])
def test_a_part_that_is_not_there(plant, train, val, part):
    with pytest.raises(BenchError, match=f"imagenet/{part} has none of the 203 synset folders"):
        restricted().locate(plant(train, val))


def test_nothing_there(tmp_path, draw):
    with pytest.raises(
        NotFound, match=r"looked for \S+/imagenet/train or \S+/ILSVRC2012/train or .*/train or \S+/train. "
    ):
        restricted().locate(tmp_path)
    draw(tmp_path / "train" / "cat" / "1.png")  # another dataset
    with pytest.raises(NotFound):
        restricted().locate(tmp_path)


SUITE = """\
name: restricted
dataset: {name: restricted_imagenet, validation: 20, digest: DIGEST, subset: {train: 60-135, test: 60-135}}
model: small_cnn
threat: {norm: linf, eps: 4/255}
training: {epochs: 1, batch_size: 32, attack: {name: pgd, steps: 1, step_size: 4/255}}
evaluation:
  track: {attack: {name: pgd, steps: 1, step_size: 4/255}, test: false}
  final: [clean, {name: pgd, steps: 2, step_size: 2/255, images: 45}]
methods: [pgd_at]
"""


def test_real_images_train(real, tmp_path):
    root = real("imagenet-sample", "imagenet")
    found = located(root)
    for part in (found.train, found.test):
        assert np.bincount(part.labels).tolist() == [118, 5, 3, 5, 21, 18, 9, 4, 20]
    (tmp_path / "suite.yaml").write_text(SUITE.replace("DIGEST", found.digest()))
    loaded = load_suite(str(tmp_path / "suite.yaml"))
    (state,) = run_suite(
        loaded, results=tmp_path / "results", data=root, settings=ExecutorSettings(device="cpu", threads=1)
    )
    folder = RunFolder.of(loaded.cells[0], tmp_path / "results")
    assert state.status == "finished", folder.log.read_text()
    (epoch,) = folder.epochs()
    assert np.isfinite(epoch["train"]["loss"])
    assert {(name, record["title"], record["count"]) for (name, _), record in folder.read_outcomes().items()} == {
        (name, *attack) for name in ("best", "last") for attack in (("Clean", 76), ("PGD-2", 45))
    }
