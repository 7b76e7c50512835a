"""Photographs before anything opens them: names, labels, archives, the node's own disk, one rank doing it for all."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from truba_runner.data.image_names import labels_of, names_in
from truba_runner.data.image_sources import Archive, Folder, source_at
from truba_runner.errors import Failed
from truba_runner.storage import node_folder
from truba_runner.training.ranks import handover
from truba_runner.training.ranks.handover import Rank

PATTERN = r"(.+)_\d+.jpg$"


def names(*given: str) -> list[PurePosixPath]:
    return [PurePosixPath(name) for name in given]


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_images_come_in_the_order_of_their_names_whatever_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def backwards(*arguments: Any, **options: Any) -> Iterator[Any]:
        for here, folders, files in walk(*arguments, **options):
            folders.sort(reverse=True)
            yield here, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    for name in ("b/1.jpg", "b-c/1.PNG", "a_10.jpg", "a_9.jpg", "notes.txt", ".hidden.jpg", ".git/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names_in(tmp_path) == names("a_10.jpg", "a_9.jpg", "b/1.jpg", "b-c/1.PNG")


def test_a_link_to_a_folder_around_it_gives_no_image_twice(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "pug_1.jpg").touch()
    (tmp_path / "in" / "deep" / "up").symlink_to("..")
    (tmp_path / "in" / "other").symlink_to(tmp_path)
    (tmp_path / "beside").symlink_to("in")  # Followed: it holds no folder that it lies in.
    assert names_in(tmp_path / "in") == names("pug_1.jpg")
    assert names_in(tmp_path) == names("beside/pug_1.jpg", "in/pug_1.jpg")


def test_labels_are_what_the_pattern_finds() -> None:
    assert labels_of(names("x/great_pyrenees_173.jpg", "pug_2.jpg"), PATTERN) == ["great_pyrenees", "pug"]


def test_a_pattern_without_a_label_is_told_with_a_name_that_has_none() -> None:
    with pytest.raises(
        Failed, match=r"\(\.\+\)_\\d\+\.png\$: it finds no label in 1 of 2 .* example pug\.jpg"
    ) as failure:
        labels_of(names("pug_2.png", "pug.jpg"), r"(.+)_\d+.png$")
    assert r"(.+)_\d+.jpg$ finds great_pyrenees" in str(failure.value)


def test_a_path_may_lead_into_an_archive(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "pets.tgz", {"pets/images/pug_1.jpg": b"1", "pets/masks/pug_1.png": b"2"})
    assert source_at(archive / "pets" / "images") == Archive(archive, PurePosixPath("pets/images"))
    (tmp_path / "pets" / "images").mkdir(parents=True)
    assert source_at(archive / "pets" / "images") == Folder(tmp_path / "pets" / "images")
    with pytest.raises(Failed, match="There is no .*dogs.tgz"):
        source_at(tmp_path / "dogs.tgz" / "dogs")


def test_an_archive_gives_its_photographs_and_nothing_else(tmp_path: Path) -> None:
    members = {"pets/images/pug_1.jpg": b"1", "pets/images/pug.mat": b"2", "pets/masks/pug_1.png": b"3"}
    archive = Archive(archive_of(tmp_path / "pets.tgz", members), PurePosixPath("pets/images"))
    assert [(name, opened().read()) for name, opened in archive.photographs()] == [(PurePosixPath("pug_1.jpg"), b"1")]


def test_nothing_in_an_archive_gets_out_of_where_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("../out_1.jpg", "/tmp/out_2.jpg", "in/../../out_3.jpg", "in/good_1.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        for name, kind in (
            ("in/link.jpg", tarfile.SYMTYPE),
            ("in/hard.jpg", tarfile.LNKTYPE),
            ("in/pipe.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    Archive(path, PurePosixPath()).unpack(target)
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if not file.is_dir()) == [
        "deep/target/in/good_1.jpg",
        "evil.tar",
    ]


@pytest.mark.parametrize("content", [b"no archive", None], ids=["another file", "cut short"])
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = archive_of(tmp_path / "pets.tgz", {f"pug_{number}.jpg": os.urandom(5000) for number in range(9)})
    path.write_bytes(content or path.read_bytes()[:20000])
    with pytest.raises(Failed, match=r"pets\.tgz cannot be unpacked"):
        list(Archive(path, PurePosixPath()).photographs())


def test_a_folder_is_another_once_a_file_in_it_has_changed(tmp_path: Path) -> None:
    (tmp_path / "a_1.jpg").write_bytes(b"1")
    before = Folder(tmp_path).identity()
    assert Folder(tmp_path).identity() == before
    os.utime(tmp_path / "a_1.jpg", ns=(1, 1))
    assert Folder(tmp_path).identity() != before


# -- the node's own disk ---------------------------------------------------------------------------------------


def test_a_folder_on_the_node_is_private_and_goes_with_its_job(tmp_path: Path) -> None:
    with node_folder.made(tmp_path, "7.0") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "copy").write_bytes(b"x")
        with node_folder.made(tmp_path, "8.0") as other:  # A second job leaves one alone whose job lives.
            assert folder.exists() and other != folder
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_job_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from truba_runner.storage import node_folder\n"
        "with node_folder.made(Path(sys.argv[1]), '7.0') as folder:\n"
        "    (folder / 'copy').write_bytes(b'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    foreign = tmp_path / f"truba-{os.getuid() + 1}-7.0"
    foreign.mkdir()
    with node_folder.made(tmp_path, "8.0"):
        assert not left.exists() and foreign.exists()


def test_a_name_that_somebody_else_has_taken_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"truba-{os.getuid()}-7.0").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError), node_folder.made(tmp_path, "7.0"):
        pass
    assert (tmp_path / "theirs").exists()


def test_a_sweep_between_making_and_locking_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept, flock = [], fcntl.flock

    def late(handle: int, how: int) -> None:
        if how == fcntl.LOCK_SH and not swept:
            swept.append(handle)
            (tmp_path / f"truba-{os.getuid()}-7.0").rmdir()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with node_folder.made(tmp_path, "7.0") as folder:
        assert swept and folder.is_dir()


# -- ranks -----------------------------------------------------------------------------------------------------


def test_one_rank_does_it_and_the_others_get_its_word(tmp_path: Path) -> None:
    """Two nodes of two ranks: something once a job, then something once a node."""
    done: list[str] = []
    words: dict[int, list[str]] = {}

    def work(index: int) -> None:
        node, on_node = divmod(index, 2)
        environment = {"SLURM_JOB_ID": "7", "SLURM_NODEID": str(node), "SLURM_LOCALID": str(on_node)}
        rank = Rank.here(index, 4, environment)

        def make(word: str) -> str:
            done.append(word)
            return word

        packed = handover.by_one(rank, tmp_path, "x-packed", lambda: make("shared"))
        words[index] = [packed, handover.by_one(rank, tmp_path, "x-copied", lambda: make(f"on {node}"), per_node=True)]

    threads = [threading.Thread(target=work, args=(index,)) for index in (3, 1, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["on 0", "on 1", "shared"]
    assert words == {0: ["shared", "on 0"], 1: ["shared", "on 0"], 2: ["shared", "on 1"], 3: ["shared", "on 1"]}
    handover.forget(Rank(rank=0, tasks=4, start="7.0"), tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


def test_a_requeued_job_does_not_take_its_earlier_starts_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"}
    handover.by_one(Rank.here(0, 2, first), tmp_path, "x", lambda: "old")
    again = {**first, "SLURM_RESTART_COUNT": "1"}
    # Rank 0 comes to it while rank 1 waits.
    leads = Rank.here(0, 2, again)
    monkeypatch.setattr(handover.time, "sleep", lambda _: handover.by_one(leads, tmp_path, "x", lambda: "new"))
    waits = Rank.here(1, 2, {**again, "SLURM_LOCALID": "1"})
    assert handover.by_one(waits, tmp_path, "x", lambda: "never") == "new"


def test_a_single_process_leaves_no_note(tmp_path: Path) -> None:
    assert handover.by_one(Rank.here(0, 1, {}), tmp_path, "x", lambda: "mine") == "mine"
    assert list(tmp_path.iterdir()) == []
