"""Photographs out of one packed file over photographs as files: images a second, and files on the disk.

Measured is what a process of fastai's DataLoader does before a batch goes to the GPU: open, decode, the lesson's
Resize(460), to a tensor, collated; per second of one core's time, which others on the machine take nothing of. The disk
plays no part: the files are in memory. The third candidate is what `data.pack` does not do, to keep the presized
photographs as JPEG (quality 95). Photographs of 500×375, as most of the pets are.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent.parent
SIZE, PHOTOGRAPH, JPEG_QUALITY = 460, (500, 375), 95
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each")
    parser.add_argument("--images", type=int, default=160)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.path[:0] = [str(ROOT), str(ROOT / "jobs")]
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    import torch
    from fastai.vision import all as vision

    from truba_runner.data import image_pack
    from truba_runner.data.image_names import names_in
    from truba_runner.data.image_pack import Pack
    from truba_runner.data.image_sources import Folder
    from truba_runner.training.fastai.learner.photographs import Photographs

    torch.set_num_threads(1)
    photographs = folder / "photographs"
    make_photographs(photographs, options.images)
    packed = folder / "photographs.pack"
    packing = seconds(lambda: image_pack.write(packed, Folder(photographs).photographs(), (SIZE, SIZE), 2, {}))
    copying = seconds(lambda: (shutil.copyfile(packed, folder / "copy"), Pack(folder / "copy").check()))
    names = names_in(photographs)
    pack = Pack(packed)
    as_jpeg = Photographs(photographs, folder, names)
    in_memory = {photographs / name: jpeg(pack.image(name)) for name in names}
    as_jpeg.image = lambda item, mode: decode(in_memory[item])  # type: ignore[method-assign]

    def block() -> vision.DataBlock:
        return vision.DataBlock(
            blocks=(vision.ImageBlock, vision.CategoryBlock),
            splitter=vision.RandomSplitter(seed=42),
            get_y=vision.using_attr(vision.RegexLabeller(r"(.+)_\d+.jpg$"), "name"),
            item_tfms=vision.Resize(SIZE),
        )

    readers = {
        "files": Photographs(photographs, photographs, names),
        "data.pack": Photographs(photographs, pack, names),
        "packed as JPEG": as_jpeg,
    }
    loaders = {}
    for name, reader in readers.items():
        made = block()
        reader.read_by(made)
        if reader is as_jpeg:
            made.getters[0] = partial(lambda reader, item: reader.image(item, "RGB"), reader)
        loaders[name] = made.dataloaders(reader.items, bs=BATCH, num_workers=0, device=torch.device("cpu")).train
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(options.rounds):
        for name, loader in loaders.items():
            rates[name].append(len(loader) * BATCH / seconds(partial(one_epoch, loader), time.process_time))
    sizes = {
        "files": sum(file.stat().st_size for file in photographs.iterdir()),
        "data.pack": packed.stat().st_size,
        "packed as JPEG": sum(map(len, in_memory.values())),
    }
    print(
        f"{options.images} photographs of {PHOTOGRAPH[0]}×{PHOTOGRAPH[1]}, {options.rounds} rounds, one core; medians"
    )
    print(f"{'':16}{'images/s':>10}{'ratio':>8}{'spread':>14}{'files':>8}{'kB an image':>14}")
    for name, values in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(values, rates["files"], strict=True)]
        print(
            f"{name:16}{statistics.median(values):10.0f}{statistics.median(ratios):8.2f}"
            f"{min(ratios):8.2f}–{max(ratios):.2f}{len(names) if name == 'files' else 1:8}"
            f"{sizes[name] / len(names) / 1000:14.0f}"
        )
    print(f"packing: {len(names) / packing:.0f} images/s on {image_pack.cores()} cores, once")
    print(f"copying to the node, and checking the copy: {packed.stat().st_size / copying / 1e6:.0f} MB/s, once a job")


def one_epoch(loader: object) -> None:
    """What a worker process does; what comes after it is the GPU's."""
    loader.before_iter()  # type: ignore[attr-defined]
    for start in range(0, len(loader) * BATCH, BATCH):  # type: ignore[arg-type]
        loader.create_batch([loader.do_item(index) for index in range(start, start + BATCH)])  # type: ignore[attr-defined]


def seconds(work: object, clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    work()  # type: ignore[operator]
    return clock() - began


def make_photographs(folder: Path, count: int) -> None:
    """Crops of the photographs that the dependencies bring along, at the size of a pet's."""
    from _photograph_crops import photographs

    folder.mkdir()
    chance = random.Random(0)
    sources = [(name, image) for name, image in photographs().items() if image.width > PHOTOGRAPH[0]]
    for number in range(count):
        name, image = sources[number % len(sources)]
        left, top = (chance.randint(0, side - wanted) for side, wanted in zip(image.size, PHOTOGRAPH, strict=True))
        crop = image.crop((left, top, left + PHOTOGRAPH[0], top + PHOTOGRAPH[1]))
        crop.save(folder / f"{name}_{number}.jpg", quality=90)


def jpeg(image: object) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=JPEG_QUALITY)  # type: ignore[attr-defined]
    return content.getvalue()


def decode(content: bytes) -> object:
    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGB")


if __name__ == "__main__":
    main()
