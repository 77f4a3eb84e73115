import re

import pytest
import torch
import torch.nn.functional as F

from bench.errors import BenchError
from bench.models.architecture import size_of
from bench.models.vit import build_vit_small, vit_small

WIDTH, DEPTH, HEADS = 384, 12, 6


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 16, 24)])
def test_the_size(channels, height, width):
    places = (height // 4) * (width // 4)
    tokens, patch = places + 1, 16 * channels
    block = (
        4 * WIDTH + (WIDTH + 1) * 3 * WIDTH + (WIDTH + 1) * WIDTH + (WIDTH + 1) * 4 * WIDTH + (4 * WIDTH + 1) * WIDTH
    )
    parameters = (patch + 1) * WIDTH + WIDTH + tokens * WIDTH + DEPTH * block + 2 * WIDTH + (WIDTH + 1) * 10
    products = tokens * (3 + 1 + 4 + 4) * WIDTH * WIDTH + 2 * tokens * tokens * WIDTH  # the last are the attention's
    multiply_adds = places * patch * WIDTH + DEPTH * products + WIDTH * 10
    assert size_of(vit_small, (10, channels, height, width)) == (parameters, 2 * multiply_adds)


def test_the_size_in_figures():
    parameters, flops = size_of(vit_small)
    assert parameters == 21_342_346
    assert flops == pytest.approx(2.84e9, rel=0.001)


def test_the_names_are_timms():
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    for block in range(DEPTH):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            names += [f"blocks.{block}.{part}.weight", f"blocks.{block}.{part}.bias"]
    names += ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert [name for name, _ in build_vit_small(10, (3, 32, 32)).named_parameters()] == names


def test_the_forward_pass_is_that_of_the_paper():
    """Written out once more: patches, class token and places; attention and a hidden layer of GELU, both normalised."""
    torch.manual_seed(0)
    network = build_vit_small(5, (3, 16, 16)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    known = network.state_dict()

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), known[f"{name}.weight"], known[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return x @ known[f"{name}.weight"].mT + known[f"{name}.bias"]

    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, 48)
    x = patches @ known["patch_embed.proj.weight"].reshape(WIDTH, 48).mT + known["patch_embed.proj.bias"]
    x = torch.cat([known["cls_token"].expand(2, -1, -1), x], 1) + known["pos_embed"]
    for number in range(DEPTH):
        block = f"blocks.{number}"
        q, k, v = (
            linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").view(2, 17, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).reshape(2, 17, WIDTH), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    logits = linear(norm(x, "norm")[:, 0], "head")
    torch.testing.assert_close(network.eval()(images), logits)
    torch.testing.assert_close(network.train()(images), logits)  # no dropout


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 30)])
def test_patches_must_fit(height, width):
    message = f"vit_small takes images whose sides are multiples of 4, not {height}x{width}"
    with pytest.raises(BenchError, match=f"^{re.escape(message)}$"):
        build_vit_small(10, (3, height, width))
