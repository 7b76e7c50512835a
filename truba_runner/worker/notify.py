"""Notify a webhook of a run's end with one JSON POST; a failure is only printed."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from truba_runner.language import _
from truba_runner.log import print_error
from truba_runner.runs.run_directory import RunDir

# Short: a compute node may have no network, and the finished job would wait.
TIMEOUT_SECONDS = 10.0


def tell(run: RunDir, state: str, about: Mapping[str, Any]) -> bool:
    """POST `{run, name, state, text, …about}` to the run's `notify.webhook`; `state` is finished or failed.

    `text` is a sentence for chat services. Returns whether the webhook was notified; never raises.
    """
    try:
        config = run.read_config()
        webhook = config.get("notify", {}).get("webhook")
        if not webhook:
            return False
        record = {"run": run.id, "name": config["name"], "state": state, "text": _sentence(run, state, about), **about}
        body = json.dumps(record, ensure_ascii=False, default=str).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "truba_runner"}
        request = urllib.request.Request(webhook, body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
            return True
    # Any error of config, proxy or server: the run has ended, and its end is recorded.
    except Exception as error:
        print_error(
            "notify.webhook could not be notified ({error}); how the run ended is recorded all the same", error=error
        )
        return False


def _sentence(run: RunDir, state: str, about: Mapping[str, Any]) -> str:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in about.get("metrics", {}).items())
    reason = about.get("error", {}).get("message", "")
    message = _("{run} failed", run=run.id) if state == "failed" else _("{run} finished", run=run.id)
    return f"{message}: {metrics or reason}" if metrics or reason else message
