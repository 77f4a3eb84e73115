"""Vision transformers for small images (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021).

The network is timm's `VisionTransformer` with a class token, and so are the initial weights and the names of the parts
(`cls_token`, `pos_embed`, `patch_embed.proj`, `blocks.0.norm1`, `blocks.0.attn.qkv`, ..., `norm`, `head`). The width,
depth and heads of ViT-S are those of Touvron et al., Training data-efficient image transformers, 2021; patches of 4x4
give a 32x32 image 64 of them.
"""

from __future__ import annotations

from torch import nn

from bench.errors import BenchError
from bench.models.architecture import Architecture, Shape
from bench.models.timm_models import import_timm

PATCH = 4


def build_vit_small(classes: int, shape: Shape) -> nn.Module:
    """Return ViT-S, width 384, 12 blocks of 6 heads, on 4x4 patches of images of `shape`, (channels, height, width).

    Raises:
        BenchError: a side of the images is not a multiple of 4.
    """
    channels, height, width = shape
    if height % PATCH or width % PATCH:
        raise BenchError(f"vit_small takes images whose sides are multiples of {PATCH}, not {height}x{width}")
    import_timm()
    from timm.models.vision_transformer import VisionTransformer

    network: nn.Module = VisionTransformer(
        img_size=(height, width),
        patch_size=PATCH,
        in_chans=channels,
        num_classes=classes,
        embed_dim=384,
        depth=12,
        num_heads=6,
    )
    return network


vit_small = Architecture(
    name="vit_small",
    title="ViT-S, 4x4 patches",
    reference="Dosovitskiy et al., An Image is Worth 16x16 Words, 2021; timm's VisionTransformer",
    build=build_vit_small,
)
