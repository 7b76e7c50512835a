"""The lesson's pet breeds: which of 37 a photograph shows. Native fastai, nothing of a cluster."""

from pathlib import Path

import torchvision
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    DataLoaders,
    ImageBlock,
    Learner,
    Normalize,
    RandomSplitter,
    RegexLabeller,
    Resize,
    aug_transforms,
    error_rate,
    get_image_files,
    imagenet_stats,
    using_attr,
    vision_learner,
)


def load_items(name: str, folder: Path) -> list[Path]:
    """The photographs, in the order of their names: a split by chance is then the same wherever they lie."""
    if name != "pets":
        raise ValueError(f"data.name is {name!r}; there is pets")
    return sorted(get_image_files(folder / "oxford-iiit-pet" / "images"))


def data_block(
    items: list[Path],
    label: str = r"(.+)_\d+\.jpe?g$",
    size: int = 224,
    item_size: int = 460,
    min_scale: float = 0.75,
    held_out: float = 0.2,
    split_seed: int = 42,
) -> DataBlock:
    """Each photograph at `item_size`, then a random part of it, at least `min_scale`, at `size`: presizing.

    `label` is a regular expression; what its group matches in the file's name is the breed.
    """
    breed = using_attr(RegexLabeller(label), "name")
    return DataBlock(
        # All breeds by name: one that chance leaves to validation alone would be unknown.
        blocks=(ImageBlock, CategoryBlock(vocab=sorted({breed(item) for item in items}))),
        splitter=RandomSplitter(held_out, seed=split_seed),
        get_y=breed,
        item_tfms=Resize(item_size),
        batch_tfms=aug_transforms(size=size, min_scale=min_scale),
    )


def build_learner(dls: DataLoaders, arch: str = "resnet34", pretrained: bool = True) -> Learner:
    """A network of torchvision's, or of timm's where that is installed, with a new head for the breeds."""
    if not pretrained:
        # fastai does this itself, but for pretrained networks alone.
        dls.add_tfms([Normalize.from_stats(*imagenet_stats)], "after_batch")
    return vision_learner(dls, architecture(arch), pretrained=pretrained, metrics=error_rate)


def architecture(name: str) -> object:
    """What `vision_learner` is given for a network's name."""
    if name in torchvision.models.list_models():
        return getattr(torchvision.models, name)
    try:
        import timm
    except ModuleNotFoundError:
        known = []
    else:
        known = timm.list_models(f"{name}*")
    if name.split(".")[0] not in known:
        raise ValueError(f"neither torchvision nor timm, where it is installed, has a network {name!r}; try resnet34")
    return name
