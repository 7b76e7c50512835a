"""Pretrained weights, and what an experiment on images is told before any job waits for its turn."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from truba_runner import data, image_rules, weights
from truba_runner.config import Cluster, Data, Experiment, Job, Source
from truba_runner.errors import Refused
from truba_runner.identity import run_id
from truba_runner.shipped import shipped
from truba_runner.sweeps import launch as sweeps
from truba_runner.sweeps.compose import Composed

CONTENT = b"weights" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:8]
TABLE = yaml.safe_load((shipped("conf") / "weights" / "torchvision.yaml").read_text())


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        """A file called short.pth is announced as longer than it is."""
        lies = keyword == "Content-Length" and self.path.endswith("short.pth")
        super().send_header(keyword, str(int(value) + 1) if lies else value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    served = tmp_path / "served"
    served.mkdir()
    for name in (f"resnet34-{DIGEST}.pth", "resnet18-00000000.pth", "model.safetensors", "short.pth"):
        (served / name).write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def job(arch: str, pretrained: bool = True, table: dict[str, str] = TABLE) -> Job:
    return Job("pets", "fastai", {"arch": arch, "pretrained": pretrained}, table)


def experiment(folder: Path, job: Job, scheduler: str = "slurm", **values: Any) -> Experiment:
    given = Data("crops", str(folder), {"crops": Source()}, **values)
    return Experiment("pets", job, given, cluster=Cluster("truba", scheduler))


def told(experiment: Experiment) -> str:
    return "\n".join(str(problem) for problem in image_rules.problems(experiment))


def test_an_architecture_leads_to_the_file_where_torchvision_looks() -> None:
    source = weights.source(job("resnet34"))
    assert source is not None
    assert (source.file, source.sha256) == ("weights/hub/checkpoints/resnet34-b627a593.pth", "b627a593")
    assert source.url == "https://download.pytorch.org/models/resnet34-b627a593.pth"
    assert weights.source(job("resnet34", pretrained=False)) is None


def test_every_address_of_the_table_ends_with_a_hash() -> None:
    without = [arch for arch in TABLE if arch != "timm/*" and TABLE[arch] and not weights.source(job(arch)).sha256]  # type: ignore[union-attr]
    assert without == [] and len(TABLE) > 75


def test_one_of_timms_is_fetched_by_its_tag() -> None:
    source = weights.source(job("timm/convnext_tiny.fb_in22k"))
    assert source is not None
    assert source.url == "https://huggingface.co/timm/convnext_tiny.fb_in22k/resolve/main/model.safetensors"
    assert source.file == "weights/timm/convnext_tiny.fb_in22k.safetensors"


@pytest.mark.parametrize(
    ("arch", "pretrained", "words"),
    [
        ("resnet43", True, "job.options.arch=resnet43: torchvision has no such architecture. Did you mean resnet34"),
        ("vit_b_16", False, "fastai cannot cut"),
        ("regnet_y_128gf", True, "no weights that fastai begins from"),
        ("timm/convnext_tiny", True, "timm/NAME.TAG"),
        ("timm/convnext_tiny", False, ""),
        ("resnet152", True, ""),
    ],
)
def test_an_architecture_is_looked_at_when_it_is_submitted(arch: str, pretrained: bool, words: str) -> None:
    found = told(experiment(Path(), job(arch, pretrained)))
    assert words in found and bool(words) == bool(found)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"label_pattern": "(.+_"}, "data.label_pattern=(.+_: it is no regular expression: missing ), unterminated"),
        ({"label_pattern": ".+"}, "first group"),
        ({"stage_to_node": True}, "Add data.pack=true"),
        ({"pack": True, "stage_to_node": True, "label_pattern": r"(.+)_\d+.jpg$"}, ""),
    ],
)
def test_image_keys_are_looked_at_when_they_are_submitted(values: dict[str, Any], words: str) -> None:
    found = told(experiment(Path(), job("resnet34"), **values))
    assert words in found and bool(words) == bool(found)


def test_missing_weights_are_fetched_and_checked_at_submission(tmp_path: Path, server: str) -> None:
    wanted = experiment(tmp_path / "data", job("resnet34", table={"resnet34": f"{server}/resnet34-{DIGEST}.pth"}))
    assert data.provide(wanted, "+experiment=pets") == "crops"
    fetched = tmp_path / "data" / "weights" / "hub" / "checkpoints" / f"resnet34-{DIGEST}.pth"
    assert fetched.read_bytes() == CONTENT and data.missing(wanted) == []
    fetched.write_bytes(CONTENT[:-1])
    assert [source.file for source in data.missing(wanted)] == [f"weights/hub/checkpoints/resnet34-{DIGEST}.pth"]


def test_each_network_of_a_sweep_has_its_weights_fetched(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "in_environment", lambda experiment: {})
    archs = {"resnet34": f"resnet34-{DIGEST}.pth", "resnet18": f"resnet18-{DIGEST}.pth"}
    (tmp_path / "served" / archs["resnet18"]).write_bytes(CONTENT)
    table = {arch: f"{server}/{file}" for arch, file in archs.items()}
    wanted = [experiment(tmp_path / "data", job(arch, table=table), "local") for arch in archs]
    wanted = [replace(one, cluster=replace(one.cluster, runs_folder=str(tmp_path / "runs"))) for one in wanted]
    planned: Any = SimpleNamespace(request=None)
    composed = [Composed(one, "+experiment=pets", {}) for one in wanted]
    checked = [sweeps._Run(one, planned, tmp_path / "pets.py") for one in composed]
    sweeps._prepared(checked, provide_data=True)
    assert {path.name for path in (tmp_path / "data" / "weights").rglob("*.pth")} == set(archs.values())


@pytest.mark.parametrize("scheduler", ["slurm", "local"])
@pytest.mark.parametrize("name", ["gone-12345678.pth", "resnet18-00000000.pth"], ids=["not there", "another file"])
def test_weights_that_cannot_be_had_are_told_with_the_command_that_stages_them(
    tmp_path: Path, server: str, scheduler: str, name: str
) -> None:
    wanted = experiment(tmp_path, job("resnet18", table={"resnet18": f"{server}/{name}"}), scheduler, fallback="crops")
    with pytest.raises(Refused) as refused:
        data.provide(wanted, "+experiment=pets")
    assert (
        f"stage +experiment=pets job.options.arch=resnet18 --from {name}; or set job.options.pretrained=false"
        in str(refused.value)
    )
    assert list((tmp_path / "weights").rglob("*.pth*")) == []


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    wanted = experiment(tmp_path, job("resnet18", table={"resnet18": "http://127.0.0.1:9/resnet18-12345678.pth"}))
    pets = Source(file="pets.tgz", url="http://127.0.0.1:9/pets.tgz")
    wanted = replace(wanted, data=replace(wanted.data, name="pets", sources={"pets": pets}))
    with pytest.raises(Refused) as refused:
        data.provide(wanted, "+experiment=pets")
    assert [problem.received for problem in refused.value.problems] == ["data.name=pets", "job.options.pretrained=true"]


def test_a_download_that_breaks_off_is_noticed_without_a_hash(tmp_path: Path, server: str) -> None:
    with pytest.raises(OSError):
        data.stage(tmp_path, Source(file="short.pth"), f"{server}/short.pth")
    assert list(tmp_path.glob("*short*")) == []


def test_where_weights_are_fetched_makes_no_network_another(tmp_path: Path) -> None:
    one, other = (experiment(tmp_path, job("resnet34", table=table)) for table in (TABLE, {"resnet34": "http://mine"}))
    packed = experiment(tmp_path, job("resnet34"), pack=True)
    staged = experiment(tmp_path, job("resnet34"), pack=True, stage_to_node=True)
    assert run_id(one) == run_id(other) != run_id(packed) == run_id(staged)


# -- a folder of one's own -------------------------------------------------------------------------------------


def with_folder(tmp_path: Path, pattern: str = r"(.+)_\d+.jpg$") -> Experiment:
    own = Data("dogs", str(tmp_path), {"dogs": Source(folder="dogs")}, label_pattern=pattern)
    return Experiment("dogs", Job("pets", "fastai"), own, cluster=Cluster("truba", "slurm"))


def test_a_folder_is_looked_at_when_it_is_submitted(tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    for words, make in (
        ("there is no folder .*dogs", lambda: None),
        ("has no image in it", folder.mkdir),
        ("no label in 1 of 1 images' names, for example pug.jpg", (folder / "pug.jpg").touch),
    ):
        make()
        with pytest.raises(Refused, match=words):
            data.provide(with_folder(tmp_path), "+experiment=dogs")
    (folder / "pug.jpg").rename(folder / "pug_1.jpg")
    assert data.provide(with_folder(tmp_path), "+experiment=dogs") == "dogs"
