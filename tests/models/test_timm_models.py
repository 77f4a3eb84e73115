import subprocess
import sys

import pytest
import timm
import torch

from bench.errors import BenchError
from bench.models.architecture import Architecture, size_of
from bench.models.timm_models import build, member

SMALL = ("resnet10t", "vit_tiny_patch16_224", "convnext_atto", "levit_128s", "cait_xxs24_224", "swin_s3_tiny_224")


@pytest.mark.parametrize("name", SMALL)
def test_many_kinds_are_built_and_measured(name):
    shape = (3, 32, 32)
    torch.manual_seed(0)
    network = build(name, 7, shape)
    assert network.training
    assert all(module.training for module in network.modules())
    images = torch.rand(2, *shape)
    with torch.no_grad():
        assert network.eval()(images).shape == (2, 7)
    torch.manual_seed(0)
    again = build(name, 7, shape).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in network.state_dict().items())
    parameters, flops = size_of(member(name), (7, *shape))
    assert parameters == sum(parameter.numel() for parameter in network.parameters())
    assert flops > 0


def test_it_is_timms_own():
    torch.manual_seed(0)
    ours = build("resnet10t", 10, (1, 24, 32))
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", pretrained=False, num_classes=10, in_chans=1)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(("shape", "places"), [((3, 32, 32), 4), ((1, 16, 48), 3)])
def test_models_that_are_made_for_a_size_are_told_it(shape, places):
    network = build("vit_tiny_patch16_224", 10, shape)
    assert network.pos_embed.shape == (1, places + 1, 192)


def test_no_pixel_is_left_out_without_a_word():
    """timm itself would cut 30x32 down to one patch of 16x16 and one more beside it."""
    assert timm.create_model("vit_tiny_patch16_224", img_size=(30, 32)).patch_embed.num_patches == 2
    with pytest.raises(BenchError, match="images: its patches are 16x16, which do not fill them$"):
        build("vit_tiny_patch16_224", 10, (3, 30, 32))
    with pytest.raises(BenchError, match="images: its patches are 16x16, which do not fill them$"):
        build("vit_tiny_patch16_224", 10, (3, 32, 40))


def test_no_weights_are_fetched(monkeypatch):
    made = []
    monkeypatch.setattr(timm, "create_model", lambda name, **settings: made.append(settings) or torch.nn.Flatten())
    build("resnet10t", 12, (3, 2, 2))
    assert made == [{"pretrained": False, "num_classes": 12, "in_chans": 3, "img_size": 2}]


def test_a_member_says_where_it_is_from():
    found = member("inception_v3")
    assert isinstance(found, Architecture)
    assert (found.name, found.typical) == ("timm/inception_v3", (1000, 3, 299, 299))
    assert timm.__version__ in found.reference
    assert size_of(member("resnet18")) == (11_689_512, pytest.approx(3.63e9, rel=0.001))  # as torchvision documents it


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ("resnet181", "; did you mean 'timm/resnet18'?"),
        ("ResNet18", "; did you mean 'timm/resnet18'?"),
        ("resnet18.a1_in1k", "; a tag of trained weights is no part of it; did you mean 'timm/resnet18'?"),
        ("", "; did you mean 'timm/"),
        ("hf-hub:timm/resnet18", "; did you mean 'timm/"),
        ("../resnet18", "; did you mean 'timm/"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(variant, problem):
    with pytest.raises(BenchError) as error:
        member(variant)
    assert str(error.value).startswith(f"timm {timm.__version__} has no model '{variant}'{problem}")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize(
    ("name", "size"), [("inception_v3", 32), ("bat_resnext26ts", 32), ("vit_tiny_patch16_224", 30), ("levit_128s", 8)]
)
def test_images_that_do_not_fit_are_one_sentence(name, size, measured):
    with pytest.raises(BenchError) as error:
        size_of(member(name), (10, 3, size, size)) if measured else build(name, 10, (3, size, size))
    sentence, _, reason = str(error.value).partition(": ")
    assert sentence == f"timm/{name} does not take 3x{size}x{size} images"
    assert reason
    assert "\n" not in reason
    assert "meta" not in reason


class NeedsValues(torch.nn.Module):
    """A classifier that reads a number when it is built, which torch's device `meta` does not have."""

    def __init__(self, pretrained, num_classes, in_chans, img_size):
        super().__init__()
        self.scale = torch.ones(1).item()
        self.linear = torch.nn.Linear(in_chans * img_size**2, num_classes)

    def forward(self, x):
        return self.linear(x.flatten(1) * self.scale)


def test_what_cannot_be_measured_can_still_be_trained(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name, **settings: NeedsValues(**settings))
    assert build("resnet10t", 10, (3, 4, 4)).scale == 1
    before = torch.get_rng_state()
    with pytest.raises(NotImplementedError, match=r"^timm/resnet10t cannot be built without storage: "):
        size_of(member("resnet10t"))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_no_classifier_is_refused(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name, **settings: torch.nn.Identity())
    with pytest.raises(BenchError, match=r"^timm/resnet10t is no classifier: .* for 3x4x4 images$"):
        build("resnet10t", 10, (3, 4, 4))


def test_a_type_error_of_the_model_itself_is_not_taken_for_a_refused_size(monkeypatch):
    calls = []

    def create(name, **settings):
        calls.append(settings)
        raise TypeError("something else")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(BenchError, match="something else"):
        build("resnet10t", 10, (3, 4, 4))
    assert len(calls) == 1


@pytest.mark.slow
def test_timm_is_imported_when_a_member_is_asked_for_and_without_a_word():
    script = """
import sys
from bench.registry import MODELS
family, vit, resnet50 = MODELS.entry("timm"), MODELS.get("vit_small"), MODELS.get("resnet50")
assert "timm" not in sys.modules and "torchvision" not in sys.modules
vit.build(10, (3, 8, 8))
assert "timm" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
