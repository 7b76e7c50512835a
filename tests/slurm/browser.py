"""Drive a real headless Chromium over its DevTools pipe, without a port or a library."""

from __future__ import annotations

import base64
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Chromium's DevTools pipe uses file descriptors 3 and 4: connect them to standard input and output.
COMMAND = 'exec chromium-headless-shell --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir="$1" \
--window-size=1600,1000 --enable-unsafe-swiftshader about:blank 3<&0 4>&1 </dev/null >/dev/null'


class Browser:
    """One page of a browser. `process` runs `COMMAND` in a shell."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        (target,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session: str | None = None
        told = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = told["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session := getattr(self, "_session", None):
            message["sessionId"] = session
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        with self._arrived:
            assert self._arrived.wait_for(lambda: number in self._answers, 240), f"no answer to {method}"
            answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait_until(self, expression: str, seconds: float = 240) -> Any:
        """Wait until a JavaScript expression is true, evaluated whenever the document changes; return its value."""
        return self.evaluate(
            f"""new Promise((done, failed) => {{
              const look = () => {{ const value = {expression}; if (value) {{ watch.disconnect(); done(value); }} }};
              const watch = new MutationObserver(look);
              watch.observe(document, {{subtree: true, childList: true, characterData: true, attributes: true}});
              look();
              setTimeout(() => failed(new Error("not in time: " + document.title)), {seconds * 1000});
            }})"""
        )

    def wait_for_answer(self, part_of_url: str, wanted: Callable[[Any], Any], seconds: float = 240) -> Any:
        """Wait until the page receives JSON, from a URL with that part, of which `wanted` is true; return its value."""
        deadline = time.monotonic() + seconds
        urls: dict[str, str] = {}
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                break
            about = event["params"]
            if event["method"] == "Network.responseReceived":
                urls[about["requestId"]] = about["response"]["url"]
            elif event["method"] == "Network.loadingFinished" and part_of_url in urls.get(about["requestId"], ""):
                body = self.call("Network.getResponseBody", requestId=about["requestId"])["body"]
                if found := wanted(json.loads(body)):
                    return found
        raise AssertionError(f"the page was not answered so by {part_of_url} within {seconds} s")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(240)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            self._take_in(stream)

    def _take_in(self, stream: Any) -> None:
        buffer = b""
        while chunk := stream.read1(1 << 16):
            *messages, buffer = (buffer + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    with self._arrived:
                        self._answers[message["id"]] = message
                        self._arrived.notify_all()
                else:
                    self._events.put(message)
