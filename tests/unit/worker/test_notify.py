from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from truba_runner.runs.run_directory import RunDir
from truba_runner.worker import notify
from truba_runner.worker import run as worker

pytestmark = [pytest.mark.programs, pytest.mark.usefixtures("own_signals")]


class Webhook:
    """A real server that keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/json"
                outer.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def run_of(folder: Path, url: str) -> RunDir:
    run = RunDir(folder / "mnist-0")
    run.create()
    run.write_config(
        {
            "name": "mnist",
            "job": {"module": "mnist"},
            "data": {"name": "digits", "folder": str(folder)},
            "resources": {"partition": "", "account": "", "gpus": 0},
            "notify": {"webhook": url},
            "cluster": {"name": "test"},
            "environment": {"name": "test"},
        }
    )
    return run


def ended(run: RunDir, monkeypatch: pytest.MonkeyPatch, outcome: Any) -> int:
    """The worker's exit status, with training that comes to `outcome`."""

    def train(*arguments: Any) -> dict[str, Any]:
        if isinstance(outcome, Exception):
            raise outcome
        return dict(outcome)

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.chdir(run.path)
    return worker.main([str(run.path)])


def test_a_finished_run_tells_its_metrics(tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, webhook.url)
    assert ended(run, monkeypatch, {"metrics": {"loss": 0.25, "test_accuracy": 0.9}}) == 0
    (told,) = webhook.received
    assert told == {
        "run": "mnist-0",
        "name": "mnist",
        "state": "finished",
        "text": "mnist-0 finished: loss 0.25, test_accuracy 0.9",
        "metrics": {"loss": 0.25, "test_accuracy": 0.9},
    }


def test_a_failed_run_tells_why(tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(run_of(tmp_path, webhook.url), monkeypatch, RuntimeError("out of luck")) == 1
    (told,) = webhook.received
    assert (told["state"], told["text"]) == ("failed", "mnist-0 failed: out of luck")
    assert told["error"]["type"] == "RuntimeError"


def test_a_webhook_that_fails_fails_no_run(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    webhook.status = 500
    run = run_of(tmp_path, webhook.url)
    assert ended(run, monkeypatch, {"metrics": {}}) == 0
    assert run.result() and "notify.webhook could not be notified" in capsys.readouterr().err


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run = run_of(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert not notify.tell(run, "finished", {})
    assert "how the run ended is recorded all the same" in capsys.readouterr().err


def test_without_an_address_nobody_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not notify.tell(run_of(tmp_path, ""), "finished", {})
    assert capsys.readouterr().err == ""
