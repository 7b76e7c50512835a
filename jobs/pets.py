"""The lesson's pet breeds: which of 37 a photograph shows. Native fastai, nothing of a cluster."""

from pathlib import Path

from _photograph_crops import make_crops
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
    imagenet_stats,
    using_attr,
    vision_learner,
)


def load_items(name: str, folder: Path) -> Path:
    """Where the photographs lie; a name of your own is that of a folder of your own."""
    if name == "crops":
        return make_crops(folder / "crops")
    if name == "oxford-iiit-pet":
        return folder / "oxford-iiit-pet.tgz" / "oxford-iiit-pet" / "images"
    return folder / name


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


def build_learner(dls: DataLoaders, arch: object, pretrained: bool = True, **timm: object) -> Learner:
    """A network of torchvision's, or of timm's with what that needs besides, with a new head for the breeds."""
    if not pretrained:
        # fastai does this itself, but for pretrained networks alone.
        dls.add_tfms([Normalize.from_stats(*imagenet_stats)], "after_batch")
    return vision_learner(dls, arch, pretrained=pretrained, metrics=error_rate, **timm)
