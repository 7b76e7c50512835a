"""Repositories of a hub: fetched from a server that answers as huggingface.co does, and laid out as its cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from truba_runner.commands import stage as command
from truba_runner.config.identity import run_id
from truba_runner.config.schema import Data, Experiment
from truba_runner.data import hub, hub_names, staging
from truba_runner.errors import Refused
from truba_runner.rules.experiment import plan

Compose = Callable[..., Experiment]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "sub/model.safetensors": b"weights" * 99, "model.bin": b"the same again" * 99}


class Hub(ThreadingHTTPServer):
    """The hub and, on another port, the host of large files; `asked` is what they were asked, with the token."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.files = dict(FILES)
        self.elsewhere = ""
        super().__init__(("127.0.0.1", 0), _Answers)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def described(self) -> bytes:
        siblings = []
        for name, content in FILES.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            one = {"rfilename": name, "size": len(content), "blobId": git}
            large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append({**one, "lfs": large} if len(content) > 100 else one)
        return json.dumps({"id": "org/net", "sha": COMMIT, "siblings": siblings}).encode()


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        api = re.fullmatch(r"/api/(?:models|datasets)/([\w./-]+)/revision/(main|v1|refs%2Fpr%2F1)", path)
        file = re.fullmatch(rf"(?:/datasets)?/[\w-]+(?:/[\w-]+)?/resolve/{COMMIT}/(.+)", path)
        if api and "gated" in api[1] and not self.headers.get("Authorization"):
            self.send_error(401)
        elif api and "none" not in api[1]:
            assert query == "blobs=true"
            self._send(self.server.described())
        elif file and file[1] in self.server.files:
            if self.server.elsewhere and file[1] != "config.json":
                self.send_response(302)
                self.send_header("Location", f"{self.server.elsewhere}{path}")
                self.end_headers()
            else:
                self._send(self.server.files[file[1]])
        else:
            self.send_error(404)

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, Hub]]:
    servers = Hub(), Hub()
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].elsewhere = servers[1].address
    monkeypatch.setenv("HF_ENDPOINT", servers[0].address)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def data(folder: Path, *entries: object) -> Data:
    return Data("none", str(folder), hub=list(entries))


def fetched(wanted: Data) -> list[Path]:
    return [hub.fetch(asset, Path(wanted.folder) / hub_names.FOLDER) for asset in hub_names.assets(wanted)]


def test_a_repository_is_fetched_once_as_the_hubs_own_cache(tmp_path: Path, hubs: tuple[Hub, Hub]) -> None:
    wanted = data(tmp_path, "org/net", "datasets/org/set@v1", "net@refs/pr/1")
    assert [str(one) for one in hub.missing(wanted)] == ["org/net", "datasets/org/set@v1", "net@refs/pr/1"]
    model, data_set, third = fetched(wanted)
    cache = tmp_path / "hub"
    assert model == cache / "models--org--net" / "snapshots" / COMMIT
    assert data_set == cache / "datasets--org--set" / "snapshots" / COMMIT
    assert {name: (model / name).read_bytes() for name in FILES} == FILES
    assert (cache / "models--org--net" / "refs" / "main").read_text() == COMMIT
    assert (third.parent.parent / "refs" / "refs" / "pr" / "1").read_text() == COMMIT
    assert hub.missing(wanted) == []
    count = len(hubs[0].asked)
    (model / "config.json").write_bytes(b"")
    assert [str(one) for one in hub.missing(wanted)] == ["org/net"]
    fetched(data(tmp_path, "org/net"))
    assert (model / "config.json").read_bytes() == b"{}" and len(hubs[0].asked) == count + 2, "that file alone"


def test_what_is_fetched_is_what_huggingface_hub_reads_offline(
    tmp_path: Path, hubs: tuple[Hub, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("huggingface_hub")
    (model,) = fetched(wanted := data(tmp_path, "org/net"))
    cache = hub_names.variables(wanted)["HF_HUB_CACHE"]
    found = library.snapshot_download("org/net", cache_dir=cache, local_files_only=True)
    assert Path(found) == model
    assert library.hf_hub_download("org/net", "config.json", cache_dir=cache, local_files_only=True)


def test_some_files_only(tmp_path: Path, hubs: tuple[Hub, Hub]) -> None:
    wanted = data(tmp_path, {"repo": "org/net", "files": ["*.json", "*.safetensors"]})
    (model,) = fetched(wanted)
    assert sorted(path.name for path in model.rglob("*.*")) == ["config.json", "model.safetensors"]
    assert hub.missing(wanted) == [] and len(hub.missing(data(tmp_path, "org/net"))) == 1
    with pytest.raises(OSError, match=r"no file of org/net matches \*.onnx"):
        fetched(data(tmp_path, {"repo": "org/net", "files": "*.onnx"}))


def test_a_token_reaches_the_hub_and_no_other_host(
    tmp_path: Path, hubs: tuple[Hub, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="HTTP 401: there is no org/gated, or it needs a token: set HF_TOKEN"):
        fetched(data(tmp_path, "org/gated"))
    (tmp_path / "token").write_text("hf_secret\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    fetched(data(tmp_path, "org/gated"))
    ours, others = hubs
    assert {token for path, token in ours.asked[1:]} == {"Bearer hf_secret"}
    assert len(others.asked) == 2 and {token for path, token in others.asked} == {""}


def test_what_the_hub_sends_is_checked(tmp_path: Path, hubs: tuple[Hub, Hub]) -> None:
    for name, content in (("config.json", b"[]"), ("model.bin", FILES["model.bin"][::-1])):
        for server in hubs:
            server.files = {**FILES, name: content}
        wanted = data(tmp_path / name, "org/net")
        with pytest.raises(OSError, match=f"{name} is not the file that the hub described"):
            fetched(wanted)
        assert len(hub.missing(wanted)) == 1
    with pytest.raises(OSError, match="HTTP 404: the hub has no org/none"):
        fetched(data(tmp_path, "org/none"))


def test_a_file_name_that_leads_out_is_not_written(tmp_path: Path, hubs: tuple[Hub, Hub]) -> None:
    FILES["../../out"] = b"x"
    try:
        with pytest.raises(OSError, match="did not answer as the hub does"):
            fetched(data(tmp_path, "org/net"))
    finally:
        del FILES["../../out"]


def test_a_submission_fetches_and_where_it_cannot_it_is_refused(
    tmp_path: Path, hubs: tuple[Hub, Hub], experiment: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = experiment("data.name=digits", "data.hub=[org/net]", f"data.folder={tmp_path}")
    assert staging.provide(composed, "+experiment=mnist") == "digits" and not hub.missing(composed.data)
    other = experiment("data.name=digits", "data.hub=[org/none,org/net]", f"data.folder={tmp_path}")
    with pytest.raises(Refused, match=r"data.hub=org/none: it is not in .*HTTP 404") as refused:
        staging.provide(other, "+experiment=mnist")
    assert len(refused.value.problems) == 1 and "truba_runner stage +experiment=mnist" in str(refused.value)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert staging.provide(composed, "+experiment=mnist") == "digits", "nothing is asked for what is there"


def test_truba_stage_fetches(
    tmp_path: Path, hubs: tuple[Hub, Hub], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["+experiment=mnist", "data.name=digits", "data.hub=[org/net]", f"data.folder={tmp_path}", "cluster=truba"]
    monkeypatch.setattr(GlobalHydra.instance(), "hydra", None)
    assert command.main(given) == 0 and "org/net: staged, in" in capsys.readouterr().out
    assert command.main([*given, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["state"] == "there already" and record["path"] == str(tmp_path / "hub" / "models--org--net")
    with pytest.raises(Refused, match="data.hub is fetched from the hub"):
        command.main([*given, "--from", str(tmp_path)])


@pytest.mark.parametrize("entry", ["a/b/c", "../x", "https://huggingface.co/org/net", "{repo: a, file: b}", "''"])
def test_an_entry_that_names_no_repository_is_refused(experiment: Compose, entry: str) -> None:
    quoted = entry if entry.startswith(("{", "'")) else f"'{entry}'"
    with pytest.raises(Refused, match="an entry is OWNER/NAME"):
        plan(experiment(f"data.hub=[{quoted}]"))


def test_a_training_reads_them_with_the_network_off(tmp_path: Path) -> None:
    assert hub_names.variables(data(tmp_path)) == {}
    variables = hub_names.variables(data(tmp_path, "org/net"))
    assert variables["HF_HUB_CACHE"] == os.path.join(tmp_path, "hub") and variables["HF_HUB_OFFLINE"] == "1"


def test_the_hub_counts_for_the_run_only_where_it_is_used(experiment: Compose) -> None:
    plain, with_hub, other = (run_id(experiment(*more)) for more in ([], ["data.hub=[a/b]"], ["data.hub=[a/b@v1]"]))
    assert len({plain, with_hub, other}) == 3
