"""Let a fastai job's own DataBlock read its photographs from files or from one packed file."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from truba_runner.config.partitions import scratch_of
from truba_runner.data.image_names import labels_of, names_in
from truba_runner.data.image_pack import Damaged, Pack, cores, refuse_unreadable, write
from truba_runner.data.image_sources import Archive, Folder, source_at
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.log import info, print_error
from truba_runner.older_python import zip_equal
from truba_runner.storage import folder_lock, node_folder
from truba_runner.training.backend import Context
from truba_runner.training.notes import one_line
from truba_runner.training.ranks import handover

_GIGABYTE = 1e9
# Temporary files of killed jobs are removed once unchanged for this long. Others wait this long for the packing job.
# Without file locks every job packs, all but one in vain.
_LEFT_SECONDS, _PACKING_SECONDS = 3600.0, 14_400.0
_NOTE = "photographs"


class Unreadable(Failed):
    """A photograph that cannot be decoded in training."""

    def __init__(self, message: str) -> None:
        """Keep the last line of `message`: a DataLoader passes on a worker's error as the text of a traceback."""
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{Unreadable.__module__}.{Unreadable.__qualname__}: "))


@dataclass
class Photographs:
    """Photographs for a DataBlock; names and order do not depend on whether they are packed."""

    # The folder or archive path that the job named. Each item begins with it, even if packed.
    path: Path
    # The folder or the packed file that they are read from.
    origin: Path | Pack
    names: list[PurePosixPath]

    @property
    def items(self) -> list[Path]:
        """Return a path for each photograph, in order."""
        return [self.path / name for name in self.names]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the names: the processes that open images get them one by one."""
        return {**self.__dict__, "names": []}

    def image(self, item: Any, mode: str = "RGB") -> Any:
        """Open an item as a Pillow image of that mode; return anything else (such as an input to predict) unchanged.

        Raises:
            Unreadable: the image cannot be decoded.
        """
        from PIL import Image

        if not isinstance(item, Path) or not item.is_relative_to(self.path):
            return item
        name = PurePosixPath(item.relative_to(self.path))
        if isinstance(self.origin, Pack):
            return self.origin.image(name).convert(mode) if name in self.origin else item
        try:
            with Image.open(self.origin / name) as image:
                return image.convert(mode)
        except Exception as error:  # Decoders raise various errors for damaged files.
            raise Unreadable(
                _(
                    "{item} cannot be read as an image ({error}). Delete or replace it.",
                    item=item,
                    error=one_line(error),
                )
            ) from error

    def read_by(self, block: Any) -> Any:
        """Make a DataBlock read these items whatever its source; its labels, splitter and transforms stay its own."""
        items = self.items
        block.get_items = lambda source: items
        # ImageBlock's opener has the mode: RGB for PILImage, L for PILImageBW.
        opener = getattr(block.type_tfms[0][0], "__self__", None)
        mode = getattr(opener, "_open_args", {}).get("mode") or "RGB"
        # partial, as fastai takes a method for a decorator of its Transform class.
        block.getters[0] = partial(Photographs.image, self, mode=mode)
        return block


@contextmanager
def opened(context: Context, path: Path, block_of: Callable[[list[Path]], Any]) -> Iterator[Photographs]:
    """Yield the photographs at `path`, prepared as `data.pack` and `data.stage_to_node` say. Every rank calls this.

    `path` is a folder or a place in an archive (see `image_sources.source_at`). The Resize of the DataBlock that
    `block_of` makes gives the size to pack at. Copies on the node's own disk are removed at the end.

    Raises:
        truba_runner.errors.Failed: no photographs, a name without label, a file that is no image, or a full disk.
    """
    rank, source = handover.Rank.here(context.rank, context.tasks), source_at(path)
    data = context.experiment.data
    with ExitStack() as at_the_end:
        at_the_end.callback(handover.forget, rank, context.run.path, _NOTE)
        # All names in a folder, but only the first in an archive, which takes long to list.
        known = (
            names_in(source.path)
            if isinstance(source, Folder)
            else [name for name, _ in islice(source.photographs(), 1)]
        )
        _check_names(path, known, data.label_pattern)
        origin: Path | Pack
        if data.pack:
            resize = _resize_of(block_of([path / known[0]]))
            origin = Pack(_packed(context, rank, source, resize, at_the_end))
            names = origin.names
        else:
            origin = source.path if isinstance(source, Folder) else _unpacked(context, rank, source, at_the_end)
            names = names_in(origin)
            if rank.rank == 0:
                check_headers(origin, names)
        _check_names(path, names, data.label_pattern)
        yield Photographs(path, origin, names)


def _check_names(path: Path, names: list[PurePosixPath], label_pattern: str) -> None:
    if not names:
        raise Failed(
            "There is no image in {path}, nor in a folder under it. The path comes from data.name and data.folder.",
            path=path,
        )
    if label_pattern:
        labels_of(names, label_pattern)


def check_headers(folder: Path, names: list[PurePosixPath]) -> None:
    """Check before training that each file is an image; truncated ones are only found when they are decoded.

    Raises:
        Failed: some files are not images; they are named.
    """
    from PIL import Image

    def wrong(name: PurePosixPath) -> str:
        try:
            with Image.open(folder / name):
                return ""
        except Exception as error:
            return one_line(error)

    with ThreadPoolExecutor(4 * cores()) as threads:
        reasons = list(zip_equal(names, threads.map(wrong, names)))
    refuse_unreadable([(name, reason) for name, reason in reasons if reason])


# -- packing ---------------------------------------------------------------------------------------------------


def _resize_of(block: Any) -> Any:
    """Return the Resize among a DataBlock's item_tfms.

    Raises:
        Failed: there is none, or it does not crop.
    """
    from fastai.vision.augment import Resize, ResizeMethod

    resize = next((transform for transform in block.item_tfms if isinstance(transform, Resize)), None)
    if resize is None:
        raise Failed(
            "data.pack=true packs images at the size of Resize(size) in the DataBlock's item_tfms, but there is no "
            "Resize. Use Resize(460), or data.pack=false."
        )
    if resize.method != ResizeMethod.Crop:
        raise Failed(
            "data.pack=true packs images at the size of Resize(size) in the DataBlock's item_tfms, but that Resize "
            "has method={method}. Use Resize(460), or data.pack=false.",
            method=resize.method,
        )
    return resize


def _packed(
    context: Context, rank: handover.Rank, source: Folder | Archive, resize: Any, at_the_end: ExitStack
) -> Path:
    """Return the packed file that this rank reads: the shared one, packed if needed, or a copy on the node's disk."""
    data = context.experiment.data
    folder = Path(data.folder) / "packed"
    shared = folder / f"{data.name}-{'x'.join(map(str, dict.fromkeys(resize.size)))}.pack"
    about = {"resize": [*map(int, resize.size)], "resample": int(resize.mode)}

    def made() -> str:
        whole = {**about, **source.identity()}
        if not _usable(shared, whole):
            with folder_lock.lock(folder, _PACKING_SECONDS):
                if not _usable(shared, whole):
                    _pack(shared, source, whole)
        return str(shared)

    def copied() -> str:
        return str(_copied_to_node(context, rank, shared, at_the_end))

    handover.by_one(rank, context.run.path, f"{_NOTE}-packed", made)
    if data.stage_to_node and _on_slurm(context):
        return Path(handover.by_one(rank, context.run.path, f"{_NOTE}-copied", copied, per_node=True))
    return shared


def _usable(path: Path, about: dict[str, Any]) -> bool:
    """Whether the packed file exists, is undamaged and was made from these images."""
    try:
        pack = Pack(path)
        if pack.about != about:
            info("{path} was packed from other images, or the images have changed since: packing again", path=path)
            return False
        pack.check()
    except FileNotFoundError:
        return False
    except Damaged as error:
        print_error("{error}: packing again", error=error)
        return False
    info("{count} images, packed in {path}", count=len(pack), path=path)
    return True


def _pack(path: Path, source: Folder | Archive, about: dict[str, Any]) -> None:
    for left in path.parent.glob(f".{path.name}.*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                left.unlink()
    began = time.monotonic()
    width, height = about["resize"]
    info("packing the images of {source} into {path}, once", source=source.path, path=path)
    try:
        write(path, source.photographs(), (width, height), about["resample"], about)
    except OSError as error:
        raise Failed(
            "{path} could not be written ({error}). Make room there, or set data.pack=false.", path=path, error=error
        ) from error
    size, count = path.stat().st_size, len(Pack(path))
    info(
        "packed {count} images, {size:.2f} GB, in {seconds:.0f} s",
        count=count,
        size=size / _GIGABYTE,
        seconds=time.monotonic() - began,
    )


# -- the node's own disk ---------------------------------------------------------------------------------------


def _on_slurm(context: Context) -> bool:
    return context.experiment.cluster.scheduler == "slurm"


def _node_folder(context: Context, rank: handover.Rank, bytes_needed: int, at_the_end: ExitStack) -> Path:
    """Return a private folder on the node's disk, removed at the end.

    Raises:
        OSError: the folder cannot be made, or the disk has too little space.
    """
    scratch = scratch_of(context.experiment)
    free = shutil.disk_usage(scratch).free
    if free < bytes_needed:
        raise OSError(
            _(
                "{scratch} has {free:.1f} GB free, but {needed:.1f} are needed",
                scratch=scratch,
                free=free / _GIGABYTE,
                needed=bytes_needed / _GIGABYTE,
            )
        )
    return at_the_end.enter_context(node_folder.made(scratch, f"{rank.start}-{rank.node}"))


def _copied_to_node(context: Context, rank: handover.Rank, shared: Path, at_the_end: ExitStack) -> Path:
    """Copy the packed file to the node's disk and verify it; on failure print why and return the file itself."""
    began = time.monotonic()
    try:
        folder = _node_folder(context, rank, shared.stat().st_size, at_the_end)
        copy = Path(shutil.copyfile(shared, folder / shared.name))
        Pack(copy).check()
    except (OSError, Damaged) as error:
        print_error("data.stage_to_node: {error}; reading {shared} instead", error=error, shared=shared)
        return shared
    info("copied {shared} to {copy} in {seconds:.1f} s", shared=shared, copy=copy, seconds=time.monotonic() - began)
    return copy


def _unpacked(context: Context, rank: handover.Rank, archive: Archive, at_the_end: ExitStack) -> Path:
    """Unpack an archive into a folder: on a cluster on the node's own disk, where no quota counts files."""
    if not _on_slurm(context):
        return _unpacked_beside(archive)

    def unpacked() -> str:
        try:
            folder = _node_folder(context, rank, archive.path.stat().st_size, at_the_end)
            archive.unpack(folder)
        except OSError as error:
            raise Failed(
                "{archive} could not be unpacked on the node's own disk ({error}). Set data.pack=true, which needs no "
                "room there, or unpack it yourself in {folder}.",
                archive=archive.path,
                error=error,
                folder=archive.path.parent,
            ) from error
        return str(folder)

    return Path(handover.by_one(rank, context.run.path, f"{_NOTE}-unpacked", unpacked, per_node=True))


def _unpacked_beside(archive: Archive) -> Path:
    """Unpack an archive into a folder next to it, atomically; return the folder."""
    target = archive.path.parent / (archive.inside if archive.inside.parts else archive.path.name.split(".")[0])
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        archive.unpack(temporary)
        with suppress(OSError):  # Another run has unpacked it meanwhile.
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
