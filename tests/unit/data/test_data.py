from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from truba_runner.config.schema import Data, Experiment, Source
from truba_runner.data.staging import missing, provide, stage
from truba_runner.errors import Refused

CONTENT = b"digits" * 1000


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A real server that has the file."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "mnist.npz").write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/mnist.npz"
    server.shutdown()
    server.server_close()


def data(folder: Path, url: str = "", sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> Experiment:
    sources = {"mnist": Source(file="mnist.npz", url=url, sha256=sha256), "digits": Source()}
    return Experiment(data=Data("mnist", str(folder), sources))


def staged(experiment: Experiment, origin: str) -> Path:
    return stage(Path(experiment.data.folder), experiment.data.sources["mnist"], origin)


def test_a_download_is_checked_and_put_in_place(tmp_path: Path, url: str) -> None:
    wanted = data(tmp_path / "data", url)
    assert [source.file for source in missing(wanted)] == ["mnist.npz"]
    assert staged(wanted, url).read_bytes() == CONTENT
    assert missing(wanted) == []


def test_a_download_of_something_else_leaves_nothing(tmp_path: Path, url: str) -> None:
    with pytest.raises(OSError, match="SHA-256"):
        staged(data(tmp_path / "data", url, sha256="0" * 64), url)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_staged_file_that_was_cut_short_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mnist.npz").write_bytes(CONTENT[:-1])
    assert len(missing(data(tmp_path))) == 1
    assert "damaged" in capsys.readouterr().err


def test_data_that_a_package_ships_is_never_missing(tmp_path: Path) -> None:
    asked = data(tmp_path)
    asked.data.name = "digits"
    assert missing(asked) == []


def test_on_a_local_run_the_fallback_stands_in(tmp_path: Path, experiment: Callable[..., Experiment], url: str) -> None:
    gone = url.replace("mnist.npz", "gone.npz")
    asked = experiment(f"data.sources.mnist.url={gone}", f"data.folder={tmp_path}", cluster="local")
    assert provide(asked, "+experiment=mnist") == "digits"
    asked.data.fallback = ""
    with pytest.raises(Refused, match="stage .experiment=mnist --from mnist.npz"):
        provide(asked, "+experiment=mnist")


def test_on_slurm_nothing_stands_in(tmp_path: Path, experiment: Callable[..., Experiment], url: str) -> None:
    gone = url.replace("mnist.npz", "gone.npz")
    with pytest.raises(Refused, match="compute nodes have no internet access"):
        provide(experiment(f"data.sources.mnist.url={gone}", f"data.folder={tmp_path}"), "+experiment=mnist")


def test_on_slurm_it_is_downloaded_at_submission(
    tmp_path: Path, experiment: Callable[..., Experiment], url: str
) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    source = [f"data.sources.mnist.url={url}", f"data.sources.mnist.sha256={sha256}"]
    assert provide(experiment(*source, f"data.folder={tmp_path / 'data'}"), "+experiment=mnist") == "mnist"
    assert (tmp_path / "data" / "mnist.npz").read_bytes() == CONTENT


def test_data_behind_a_log_in_is_named_with_the_page_that_has_it(
    tmp_path: Path, experiment: Callable[..., Experiment]
) -> None:
    asked = experiment(f"data.folder={tmp_path}")
    asked.data.sources["mnist"] = Source(file="mnist.npz", page="https://example.org/get-it")
    with pytest.raises(Refused, match="Download https://example.org/get-it on a machine .* --from mnist.npz"):
        provide(asked, "+experiment=mnist")
