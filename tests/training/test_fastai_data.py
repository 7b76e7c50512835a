"""Photographs as fastai reads them: from files, out of an archive, out of one packed file; and the networks' names."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from truba_runner.code import job_module
from truba_runner.config.schema import experiment_from
from truba_runner.data import image_pack
from truba_runner.data.image_pack import Damaged, Pack
from truba_runner.errors import Failed
from truba_runner.runs.progress import Progress
from truba_runner.runs.run_directory import RunDir
from truba_runner.training.backend import Context
from truba_runner.training.fastai.learner import architectures
from truba_runner.training.fastai.learner.photographs import Photographs, Unreadable, opened

pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning"),
    pytest.mark.filterwarnings("default::FutureWarning"),
    pytest.mark.filterwarnings("default::UserWarning:torch.*"),
]

ROOT = Path(__file__).resolve().parents[2]
PATTERN = r"(.+)_\d+.jpg$"
# Smaller than the lesson's 460, and than the crops, as most of its photographs are larger.
ITEM_SIZE = 96


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs, in a folder of a folder."""
    sys.path.insert(0, str(ROOT / "jobs"))
    module = job_module.load(ROOT / "jobs" / "_photograph_crops.py")
    return module.make_crops(tmp_path_factory.mktemp("made") / "pets" / "images", each=6)  # type: ignore[no-any-return]


@pytest.fixture
def archive(crops: Path, tmp_path: Path) -> Path:
    """The same in an archive, beside what is no photograph of it; the path leads inside."""
    path = tmp_path / "data" / "pets.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as file:
        file.add(crops, "pets/images")
        file.add(crops / "china_left_1.jpg", "pets/masks/china_left_1.png")
    return path / "pets" / "images"


def block(items: Any = None, **changes: Any) -> Any:
    from fastai.vision import all as vision

    breed = vision.using_attr(vision.RegexLabeller(PATTERN), "name")
    given = {"item_tfms": vision.Resize(ITEM_SIZE), "blocks": (vision.ImageBlock, vision.CategoryBlock), **changes}
    return vision.DataBlock(splitter=vision.RandomSplitter(seed=42), get_y=breed, **given)


Open = Callable[..., Photographs]


@pytest.fixture
def photographs(tmp_path: Path) -> Iterator[Open]:
    """Opens photographs as a run would, and closes them at the end; `closed` does so before."""
    with ExitStack() as stack:

        def open_(
            path: Path, block_of: Any = block, scheduler: str = "local", pack: bool = False, **data: Any
        ) -> Photographs:
            given = context(tmp_path, scheduler, label_pattern=PATTERN, pack=pack, **data)
            return stack.enter_context(opened(given, path, block_of))

        open_.closed = stack.close  # type: ignore[attr-defined]
        yield open_


def context(folder: Path, scheduler: str = "local", job: dict[str, Any] | None = None, **data: Any) -> Context:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    values = {
        "name": "pets",
        "job": {"module": "pets", "backend": "fastai", **(job or {})},
        "data": {"name": "pets", "folder": str(folder / "data"), **data},
        "cluster": {
            "name": "test",
            "scheduler": scheduler,
            "partitions": {"gpu": {"local_scratch": str(scratch)}},
        },
        "environment": {"name": "test"},
        "resources": {"partition": "gpu", "account": "", "gpus": 0},
    }
    run = RunDir(folder / "run")
    run.create()
    return Context(experiment_from(values), object(), run, Progress(run, "1"))  # type: ignore[arg-type]


def loaders(photos: Photographs, **options: Any) -> Any:
    return photos.read_by(block(**options)).dataloaders(photos.items, bs=8, num_workers=0)


def decoded(photos: Photographs, split: int) -> list[Any]:
    """Every image as the network's side gets it: after Resize, for training (0) with its random place."""
    import numpy as np

    made = loaders(photos)
    dataset = (made.train_ds, made.valid_ds)[split]
    made.loaders[split].before_iter()  # Tells the transforms which of the two it is.
    found = []
    for index in range(len(dataset)):
        random.seed(index)
        image, _ = made.loaders[split].after_item(dataset[index])
        found.append(np.asarray(image).astype(int))
    return found


# -- the same, however it is read ------------------------------------------------------------------------------


def test_items_labels_and_split_do_not_depend_on_how_they_are_read(
    crops: Path, archive: Path, photographs: Open
) -> None:
    from fastai.vision.all import get_image_files

    ways = {
        "files": photographs(crops),
        "packed files": photographs(crops, pack=True),
        "archive": photographs(archive),
        "packed archive": photographs(archive, pack=True, name="archived"),
    }
    expected = sorted(path.name for path in get_image_files(crops))
    assert len(expected) == 36 and all([item.name for item in photos.items] == expected for photos in ways.values())
    splits = []
    for photos in ways.values():
        made = loaders(photos)
        splits.append([[item.name for item in part.items] for part in (made.train_ds, made.valid_ds)])
        splits[-1].append([int(label) for part in (made.train_ds, made.valid_ds) for _, label in part])
        assert list(made.vocab) == [
            f"{name}_{half}" for name in ("china", "flower", "hopper") for half in ("left", "right")
        ]
    assert all(split == splits[0] for split in splits[1:])


def test_validation_sees_the_same_pixels_but_for_rounding(crops: Path, photographs: Open, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    again = tmp_path / "again"
    again.mkdir()
    for file in crops.iterdir():
        Image.open(file).save(again / file.name, quality=95)
    files, packed, jpeg = (
        decoded(photographs(*given), 1) for given in ((crops, block), (crops, block, "local", True), (again, block))
    )
    differences = np.abs(np.array(files) - np.array(packed))
    assert differences[:, :, 4:-4, 4:-4].max() <= 1, "inside; at the edge Resize cuts before it interpolates"
    assert differences.mean() < np.abs(np.array(files) - np.array(jpeg)).mean() / 10


def test_in_training_the_random_place_moves_by_less_than_two_pixels() -> None:
    """Where Resize begins to cut, in a photograph and in what is packed of it, with the same random number."""
    chance = random.Random(0)
    for _ in range(20000):
        size, width = chance.choice((96, 224, 460)), chance.randint(60, 4000)
        scale = min(width, chance.randint(60, width)) / size
        begin, end, pixels = image_pack._span(width, size, width / size, scale)
        crop, place = int(scale * size), chance.random()
        in_photograph, in_packed = int(place * (width - crop)), int(place * (pixels - size))
        pixel = (end - begin) / pixels
        assert 0 <= begin < end <= width and pixels >= size
        assert abs(begin + in_packed * pixel - in_photograph) < 2 * max(1, pixel)


def test_a_photograph_that_has_the_size_already_is_the_same_to_the_bit(tmp_path: Path, photographs: Open) -> None:
    import numpy as np
    from PIL import Image

    folder = tmp_path / "exact"
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(6):
        pixels = chance.integers(0, 256, (ITEM_SIZE, ITEM_SIZE + 30 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"noise_{number}.jpg")
    files, packed = photographs(folder), photographs(folder, pack=True)
    for split in (0, 1):
        pairs = zip(decoded(files, split), decoded(packed, split), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)


def test_everything_of_the_lesson_works_on_a_packed_file(
    crops: Path, photographs: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    import matplotlib
    import torch
    from fastai.vision import all as vision

    matplotlib.use("agg")
    photos = photographs(crops, pack=True)
    made = photos.read_by(block(batch_tfms=vision.aug_transforms(size=64, min_scale=0.75)))
    made.summary(photos.path)
    summary = capsys.readouterr().out
    assert f"PILImage mode=RGB size={ITEM_SIZE}x{ITEM_SIZE}" in summary
    assert f"Collecting items from {crops}\nFound 36 items" in summary, "not from a list of all of them"
    batches = {}
    for workers in (0, 2):
        data = made.dataloaders(photos.items, bs=8, num_workers=workers)
        x, y = data.valid.one_batch()
        batches[workers] = (x, y)
        assert x.shape == (7, 3, 64, 64) and len(y) == 7
        data.show_batch()
    assert torch.equal(batches[0][0], batches[2][0]) and torch.equal(batches[0][1], batches[2][1])
    grey = photos.read_by(block(blocks=(vision.ImageBlock(vision.PILImageBW), vision.CategoryBlock)))
    assert grey.dataloaders(photos.items, bs=8, num_workers=0).one_batch()[0].shape[1] == 1


@pytest.mark.parametrize("pack", [False, True])
def test_an_exported_learner_predicts_other_photographs_without_the_old_ones(
    crops: Path, photographs: Open, tmp_path: Path, pack: bool
) -> None:
    from fastai.vision import all as vision

    mine = Path(shutil.copytree(crops, tmp_path / "mine"))
    other = Path(shutil.copy(crops / "flower_left_1.jpg", tmp_path / "other.jpg"))
    photos = photographs(mine, pack=pack)
    learner = vision.Learner(loaders(photos), vision.nn.Sequential(vision.Flatten(), vision.nn.LazyLinear(6)))
    learner.path = tmp_path
    learner.dls.device = "cpu"
    with learner.no_bar():
        before = learner.predict(other)[2]
    learner.export("export.pkl")
    shutil.rmtree(mine)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    with pytest.warns(UserWarning, match="insecure pickle"):
        loaded = vision.load_learner(tmp_path / "export.pkl")
    with loaded.no_bar():
        assert (loaded.predict(other)[2] == before).all()


# -- one file --------------------------------------------------------------------------------------------------


def packed_file(folder: Path) -> Path:
    (path,) = (folder / "data" / "packed").glob("*.pack")
    return path


def test_packing_happens_once_and_again_when_the_images_change(
    crops: Path, photographs: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copytree(crops, tmp_path / "mine"))
    photographs(mine, pack=True)
    first = packed_file(tmp_path)
    before = first.stat().st_ino
    photographs(mine, pack=True)
    assert packed_file(tmp_path).stat().st_ino == before and "36 images, packed in" in capsys.readouterr().out
    (mine / "china_left_1.jpg").unlink()
    assert len(photographs(mine, pack=True).items) == 35
    assert "have changed since: packing again" in capsys.readouterr().out
    names = {file.name for file in (tmp_path / "data" / "packed").iterdir()}
    assert names == {f"pets-{ITEM_SIZE}.pack", ".lock"}


@pytest.mark.parametrize("harm", ["a bit", "cut short", "its index", "another file", "empty"])
def test_a_damaged_pack_is_noticed_and_made_anew(
    crops: Path, photographs: Open, tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs(crops, pack=True)
    path = packed_file(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[{"a bit": len(whole) // 3, "its index": -60}.get(harm, 0)] ^= 4
    path.write_bytes({"cut short": whole[:-1], "another file": b"no pack" * 99, "empty": b""}.get(harm, bytes(flipped)))
    with pytest.raises(Damaged):
        Pack(path).check()
    photographs(crops, pack=True)
    assert path.read_bytes() == whole and "packing again" in capsys.readouterr().err


def test_packing_is_repeatable_on_any_number_of_cores(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from truba_runner.data.image_sources import Folder

    written = []
    for number in (1, 5):
        monkeypatch.setattr(image_pack, "cores", lambda number=number: number)
        image_pack.write(tmp_path / str(number), Folder(crops).photographs(), (64, 64), 2, {})
        written.append((tmp_path / str(number)).read_bytes())
    assert written[0] == written[1]


def test_of_two_jobs_at_once_one_packs_and_the_other_waits_for_it(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = threading.Barrier(2, timeout=240)
    counts = []

    def run() -> None:
        both.wait()
        with opened(context(tmp_path, pack=True), crops, block) as photos:
            assert isinstance(photos.origin, Pack)
            photos.origin.check()
            counts.append(len(photos.items))

    jobs = [threading.Thread(target=run) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert counts == [36, 36] and capsys.readouterr().out.count(", once") == 1
    assert {file.name for file in packed_file(tmp_path).parent.iterdir()} == {f"pets-{ITEM_SIZE}.pack", ".lock"}


def test_a_pack_is_small_to_hand_on_and_is_known_again(crops: Path, photographs: Open, tmp_path: Path) -> None:
    import numpy as np

    photos = photographs(crops, pack=True)
    assert isinstance(photos.origin, Pack) and len(pickle.dumps(photos.origin)) < 500
    copied = pickle.loads(pickle.dumps(photos))
    item = photos.items[5]
    assert np.array_equal(np.asarray(copied.image(item)), np.asarray(photos.image(item)))
    message = pickle.dumps(photos)
    image_pack.write(packed_file(tmp_path), [], (64, 64), 2, {})
    with pytest.raises(Failed, match="was replaced by another file"):
        pickle.loads(message).image(item)
    assert np.array_equal(np.asarray(copied.image(item)), np.asarray(photos.image(item))), "what is open stays"


def test_a_full_disk_leaves_the_old_file_and_no_other(
    crops: Path, photographs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Path(shutil.copytree(crops, tmp_path / "mine"))
    photographs(mine, pack=True)
    whole = packed_file(tmp_path).read_bytes()
    (mine / "china_left_1.jpg").unlink()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failed, match="No space left on device.*data.pack=false"):
        photographs(mine, pack=True)
    assert packed_file(tmp_path).read_bytes() == whole
    assert len(list(packed_file(tmp_path).parent.iterdir())) == 2


# -- the node's own disk ---------------------------------------------------------------------------------------


def test_a_packed_file_is_copied_to_the_node_and_taken_away(crops: Path, photographs: Open, tmp_path: Path) -> None:
    photos = photographs(crops, pack=True, stage_to_node=True, scheduler="slurm")
    assert isinstance(photos.origin, Pack)
    folder = photos.origin.path.parent
    assert folder.parent == tmp_path / "scratch" and folder.stat().st_mode & 0o777 == 0o700
    assert photos.origin.path.read_bytes() == packed_file(tmp_path).read_bytes()
    photographs.closed()  # type: ignore[attr-defined]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_local_run_copies_nothing(crops: Path, photographs: Open, tmp_path: Path) -> None:
    photos = photographs(crops, pack=True, stage_to_node=True)
    assert isinstance(photos.origin, Pack) and photos.origin.path == packed_file(tmp_path)


def test_without_room_on_the_node_the_shared_file_is_read(
    crops: Path, photographs: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))  # type: ignore[attr-defined]
    photos = photographs(crops, pack=True, stage_to_node=True, scheduler="slurm")
    assert isinstance(photos.origin, Pack) and photos.origin.path == packed_file(tmp_path)
    assert "0.0 GB free" in capsys.readouterr().err


def test_on_a_cluster_an_archive_is_unpacked_on_the_node(archive: Path, photographs: Open, tmp_path: Path) -> None:
    photos = photographs(archive, scheduler="slurm")
    assert isinstance(photos.origin, Path) and (tmp_path / "scratch") in photos.origin.parents
    assert photos.image(photos.items[0]).size
    photographs.closed()  # type: ignore[attr-defined]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["pets.tgz"], "shared disks count files"


def test_here_an_archive_is_unpacked_beside_itself_once(archive: Path, photographs: Open, tmp_path: Path) -> None:
    first = photographs(archive).origin
    assert first == tmp_path / "data" / "pets" / "images" and len(list(first.iterdir())) == 36
    assert photographs(archive).origin == first
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == ["pets", "pets.tgz"]


# -- what can be wrong -----------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(crops: Path, tmp_path: Path) -> Path:
    """One file is no image, one was cut short."""
    folder = Path(shutil.copytree(crops, tmp_path / "spoilt"))
    (folder / "china_left_1.jpg").write_bytes(b"<html>not found</html>")
    (folder / "hopper_right_2.jpg").write_bytes((folder / "hopper_right_2.jpg").read_bytes()[:3000])
    return folder


def test_packing_names_every_photograph_that_cannot_be_read(spoilt: Path, photographs: Open, tmp_path: Path) -> None:
    with pytest.raises(
        Failed, match=r"^2 images cannot be read: china_left_1.jpg \(.*hopper_right_2.jpg \(.*truncated"
    ):
        photographs(spoilt, pack=True)
    assert [file.name for file in (tmp_path / "data" / "packed").iterdir()] == [".lock"]


def test_a_file_that_is_no_image_is_named_before_training(spoilt: Path, photographs: Open) -> None:
    with pytest.raises(Failed, match="^1 image cannot be read: china_left_1.jpg"):
        photographs(spoilt)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photograph_cut_short_is_named_by_the_training(spoilt: Path, photographs: Open, workers: int) -> None:
    (spoilt / "china_left_1.jpg").unlink()
    photos = photographs(spoilt)
    made = photos.read_by(block()).dataloaders(photos.items, bs=35, num_workers=workers)
    with pytest.raises(Unreadable) as failure:
        for loader in (made.train, made.valid):
            list(loader)
    assert str(failure.value).startswith(f"{spoilt / 'hopper_right_2.jpg'} cannot be read as an image (")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("pack", [False, True])
def test_an_empty_folder_and_a_wrong_pattern_are_told_before_anything_is_decoded(
    crops: Path, tmp_path: Path, pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr(Image, "open", None)
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(Failed, match="There is no image in .*empty"),
        opened(context(tmp_path, pack=pack), tmp_path / "empty", block),
    ):
        pass
    with (
        pytest.raises(Failed, match="no label in 36 of 36 .* example china_left_1.jpg"),
        opened(context(tmp_path, pack=pack, label_pattern=r"(\d+)_(.+).png"), crops, block),
    ):
        pass


def test_packing_needs_to_know_the_size(crops: Path, photographs: Open) -> None:
    with pytest.raises(Failed, match="Resize.* there is no Resize"):
        photographs(crops, lambda items: block(item_tfms=None), pack=True)


# -- networks --------------------------------------------------------------------------------------------------


def asked(folder: Path, arch: str, pretrained: bool = False, **table: str) -> Context:
    return context(folder, job={"options": {"arch": arch, "pretrained": pretrained}, "weights": table})


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("resnet43", "torchvision has no such architecture. Did you mean resnet"),
        ("timm/resnet43", "timm has no such architecture. Did you mean resnet"),
    ],
)
def test_an_unknown_network_is_told_with_its_neighbours(tmp_path: Path, arch: str, words: str) -> None:
    with pytest.raises(Failed, match=words):
        architectures.chosen(asked(tmp_path, arch))


def test_torchvision_begins_from_the_staged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", "elsewhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    folder = tmp_path / "data" / "weights" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(squeezenet1_1().state_dict(), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
    # Its real name, which torchvision asks for, has the hash of the real weights.
    given = asked(tmp_path, "squeezenet1_1", True, squeezenet1_1=f"http://127.0.0.1:9/squeezenet1_1-{digest}.pth")
    with pytest.raises(Failed, match=f"squeezenet1_1-{digest}.pth, the pretrained weights of .* is not there"):
        architectures.chosen(given)
    (folder / f"squeezenet1_1-{digest}.pth").write_bytes((folder / "new.pth").read_bytes())
    assert architectures.chosen(given) == {"arch": squeezenet1_1}
    (folder / "squeezenet1_1-b8a52dc0.pth").write_bytes((folder / "new.pth").read_bytes())
    loaded = squeezenet1_1(weights="DEFAULT").state_dict()
    expected = torch.load(folder / "new.pth", weights_only=True)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    (folder / f"squeezenet1_1-{digest}.pth").write_bytes(b"altered")
    with pytest.raises(Failed, match="is damaged"):
        architectures.chosen(given)


def test_timm_begins_from_the_staged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    import torch
    from fastai.vision.learner import create_timm_model
    from safetensors.torch import save_file

    for name in ("TORCH_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    source = timm.create_model("resnet10t")
    file = tmp_path / "data" / "weights" / "timm" / "resnet10t.c3_in1k.safetensors"
    file.parent.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, file)
    found = architectures.chosen(
        asked(tmp_path, "timm/resnet10t.c3_in1k", True, **{"timm/*": "http://x/{}.safetensors"})
    )
    model, _ = create_timm_model(n_out=3, pretrained=True, **found)
    assert torch.equal(model[0].model.conv1[0].weight, source.conv1[0].weight)


def test_the_table_has_the_addresses_that_fastai_would_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision
    import yaml
    from fastai.vision.learner import model_meta
    from torchvision.models import get_model_builder, get_model_weights, list_models

    table = yaml.safe_load((ROOT / "conf/weights/torchvision.yaml").read_text())
    del table["timm/*"]
    known = list_models(module=torchvision.models)
    assert sorted(table) == sorted(known)
    for name in known:
        choices = get_model_weights(name)
        by_default = "weights" in model_meta.get(get_model_builder(name), {})
        # fastai calls the others with pretrained=True, which is torchvision's word for the first version.
        weights = choices.DEFAULT if by_default else getattr(choices, "IMAGENET1K_V1", None)
        assert table[name] == (weights.url if weights else ""), name


def test_what_fastai_cannot_cut_is_on_the_list(tmp_path: Path) -> None:
    from fastai.vision.learner import create_vision_model

    from truba_runner.data.weights import problems

    for name in ("mnasnet0_5", "squeezenet1_1", "mobilenet_v3_small"):
        builder = architectures.chosen(asked(tmp_path, name))["arch"]
        told = list(problems(asked(tmp_path, name, **{name: "http://x"}).experiment.job))
        try:
            create_vision_model(builder, 3, pretrained=False)
        except StopIteration:
            assert told
        else:
            assert not told


def test_the_pets_job_takes_a_folder_of_its_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    load_items = job_module.load(ROOT / "jobs" / "pets.py").load_items
    assert load_items("flowers", tmp_path) == tmp_path / "flowers"
