"""A small set of real photographs: crops of the three that scikit-learn and matplotlib bring along, always the same."""

import os
import random
import shutil
import tempfile
from pathlib import Path

# Of each crop's shorter side, in pixels; the photographs have 427 and more.
SIDES = (160, 260)
# The halves of a photograph are classes of their own: with three classes there would be little to mistake.
HALVES = ("left", "right")


def make_crops(folder: Path, each: int = 24, seed: int = 0) -> Path:
    """`folder` with `each` crops of six classes, named as the pets are: china_left_1.jpg, china_left_2.jpg, …

    Where the folder is there already, it is left as it is.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, photograph in photographs().items():
            for half in HALVES:
                chance = random.Random(f"{seed} {name} {half}")
                for number in range(1, each + 1):
                    crop = photograph.crop(box(chance, photograph.size, half))
                    crop.save(beside / f"{name}_{half}_{number}.jpg", quality=90)
        os.rename(beside, folder)
    except OSError:
        if not folder.is_dir():  # Else another job was quicker.
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def photographs() -> dict:
    """Each photograph by its name."""
    import matplotlib
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    found = {Path(name).stem: Image.fromarray(pixels) for name, pixels in zip(sample.filenames, sample.images)}
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return {**found, "hopper": Image.open(hopper).convert("RGB")}


def box(chance: random.Random, size: tuple[int, int], half: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop whose middle lies in that half of the photograph."""
    width, height = chance.randint(*SIDES), chance.randint(*SIDES)
    begin, end = (0, size[0] // 2) if half == "left" else (size[0] // 2, size[0])
    left = min(max(chance.randint(begin, end) - width // 2, 0), size[0] - width)
    top = chance.randint(0, size[1] - height)
    return left, top, left + width, top + height
