"""Every image classifier of timm (Wightman, PyTorch Image Models, 2019) as `timm/<name>`, never with trained weights.

`<name>` is one of `timm.list_models()`, such as `resnet18`; a tag of trained weights, as in `resnet18.a1_in1k`, is not
part of it. The names of the parts are timm's. A cell's identity contains `timm/<name>` and nothing else of the network,
and timm decides what that name builds: compare runs of one version of timm only, and pin it. A run records the version.
"""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from functools import partial
from types import ModuleType

import torch
from torch import nn

from bench.errors import BenchError
from bench.models.architecture import Architecture, Family, Shape


def import_timm() -> ModuleType:
    """Import timm, which takes a second or two, and return it.

    Without the warnings that the import gives: they tell timm's developers of torch's plans.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        import timm
    module: ModuleType = timm
    return module


def build(name: str, classes: int, shape: Shape) -> nn.Module:
    """Return timm's model `name` for images of `shape`, (channels, height, width), checked on a black one.

    Raises:
        BenchError: the model does not take such images, or returns anything but one logit a class.
        NotImplementedError: on torch's device `meta`, where a few models cannot be built that otherwise can.
    """
    size = "x".join(map(str, shape))
    try:
        network = _create(name, classes, shape)
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, *shape))
        network.train()
    except Exception as error:  # timm's models complain in many ways
        if torch.empty(0).is_meta:  # then the reason may be that nothing has a value there: look whether it is
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                build(name, classes, shape)
            raise NotImplementedError(f"timm/{name} cannot be built without storage: {error}") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchError(f"timm/{name} does not take {size} images: {reason[:200]}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        raise BenchError(f"timm/{name} is no classifier: it does not return one logit a class for {size} images")
    return network


def _create(name: str, classes: int, shape: Shape) -> nn.Module:
    """Return the model, told its image size where its class takes one, as vision transformers do."""
    channels, height, width = shape
    create = partial(import_timm().create_model, name, pretrained=False, num_classes=classes, in_chans=channels)
    try:
        network: nn.Module = create(img_size=height if height == width else (height, width))
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        network = create()
    embedding = getattr(network, "patch_embed", None)
    if isinstance(embedding, import_timm().layers.PatchEmbed) and not embedding.dynamic_img_pad:
        rows, columns = embedding.patch_size
        if height % rows or width % columns:  # timm would leave the last pixels out
            raise BenchError(f"its patches are {rows}x{columns}, which do not fill them")
    return network


def member(variant: str) -> Architecture:
    """Return `timm/<variant>`.

    Raises:
        BenchError: timm has no such model (the message suggests the nearest).
    """
    timm = import_timm()
    known = timm.list_models()
    if variant not in known:
        near = get_close_matches(variant.partition(".")[0], known, n=1, cutoff=0)[0]
        tag = "; a tag of trained weights is no part of it" if variant.partition(".")[0] in known else ""
        raise BenchError(f"timm {timm.__version__} has no model '{variant}'{tag}; did you mean 'timm/{near}'?")
    config = timm.models.get_pretrained_cfg(variant)
    return Architecture(
        name=f"timm/{variant}",
        title=f"{variant} of timm",
        reference=f"timm {timm.__version__} (Wightman, PyTorch Image Models, 2019)",
        build=partial(build, variant),
        typical=(1000, *(config.input_size if config else (3, 224, 224))),
    )


timm = Family(name="timm", title="any classifier of timm, by its name there", written="<name>", member=member)
