"""TensorBoard's web application with a page that reloads when data changes and that only this machine can open.

TensorBoard's own page reloads everything, every 30 seconds at most, or never. Ours, while visible, requests a version
number every three seconds and reloads if it has changed, every six seconds at most. A hidden page requests nothing.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterable
from typing import Any

from truba_runner.tensorboard.feed import SAMPLES, Feed, provider

_NEWS, _SCRIPT, _PROGRAM = "/truba/news", "/truba/follow.js", "/index.js"
# TensorBoard's page sorts the runs by name. Sorted by a column that does not exist, they keep the server's order. This
# text is in the program of TensorBoard 2.21; without it the page works, and sorts the runs by name.
_SORTED, _AS_THEY_COME = b'sortingInfo:{name:"run",order', b'sortingInfo:{name:"",order'
# The host names by which a browser reaches this machine. Without this check a foreign web page could read the data by
# letting its own host name resolve to 127.0.0.1 (DNS rebinding).
_OWN_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_FOLLOW = """
(() => {
  let seen = document.currentScript.dataset.version, reloaded = 0;
  const look = async () => {
    if (document.visibilityState !== "visible" || Date.now() - reloaded < 5500) return;
    try {
      const answer = await fetch("truba/news");
      const version = await answer.text();
      const button = document.querySelector(".reload-button");
      if (!answer.ok || version === seen || !button || button.disabled) return;
      seen = version;
      reloaded = Date.now();
      button.click();
    } catch { /* The server may be back at the next look. */ }
  };
  setInterval(look, 3000);
  document.addEventListener("visibilitychange", look);
})();
"""

_Start = Callable[..., Any]
# Status, headers, body.
_Answer = tuple[str, list[tuple[str, str]], bytes]


class Page:
    """WSGI application around TensorBoard's."""

    def __init__(self, feed: Feed) -> None:
        """Create TensorBoard's application on the data of `feed`."""
        self._feed = feed
        self._tensorboard = _tensorboard(feed)
        self._asked = time.monotonic()
        self._program: _Answer | None = None

    def idle_seconds(self) -> float:
        """Return the seconds since the last request."""
        return time.monotonic() - self._asked

    def __call__(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        """Answer one request."""
        self._asked = time.monotonic()
        if environ.get("HTTP_HOST", "").rpartition(":")[0] not in _OWN_NAMES:
            return _answer(start, "403 Forbidden", "text/plain", b"Open it as http://127.0.0.1 or http://localhost.")
        path = environ["PATH_INFO"]
        if path == _NEWS:
            return _answer(start, "200 OK", "text/plain", str(self._feed.news()).encode())
        if path == _SCRIPT:
            return _answer(start, "200 OK", "text/javascript", _FOLLOW.encode())
        if path in {"/", "/index.html"}:
            return self._with_script(environ, start)
        if path == _PROGRAM:
            return self._newest_first(environ, start)
        answer: Iterable[bytes] = self._tensorboard(environ, start)
        return answer

    def _with_script(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        status, headers, body = self._ask(environ)
        body += f'<script src="{_SCRIPT[1:]}" data-version="{self._feed.news()}"></script>'.encode()
        start(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def _newest_first(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        if self._program is None:
            status, headers, body = self._ask({**environ, "HTTP_ACCEPT_ENCODING": "identity"})
            # Every browser accepts gzip; it is a quarter of the size.
            packed = gzip.compress(body.replace(_SORTED, _AS_THEY_COME, 1), 4)
            length = ("Content-Length", str(len(packed)))
            self._program = status, [*headers, ("Content-Encoding", "gzip"), length], packed
        status, headers, body = self._program
        start(status, headers)
        return [body]

    def _ask(self, environ: dict[str, Any]) -> _Answer:
        """Return TensorBoard's answer without the Content-Length header."""
        started: list[tuple[str, list[tuple[str, str]]]] = []
        body = b"".join(self._tensorboard(environ, lambda status, headers, *_: started.append((status, headers))))
        status, headers = started[0]
        return status, [(name, value) for name, value in headers if name.lower() != "content-length"], body


def _answer(start: _Start, status: str, kind: str, body: bytes) -> Iterable[bytes]:
    headers = [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))]
    start(status, [*headers, ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")])
    return [body]


def _tensorboard(feed: Feed) -> Any:
    from tensorboard import assets, default
    from tensorboard.backend.application import TensorBoardWSGIApp
    from tensorboard.program import TensorBoard

    # Only TensorBoard's own plugins: others would import TensorFlow.
    plugins = default.get_static_plugins()
    samples = ",".join(f"{name}={count}" for name, count in SAMPLES.items())
    program = TensorBoard(plugins=plugins)
    # argv, with an empty program name. The log folder is a dummy: only the feed reads files.
    program.configure(("", "--logdir=truba_runner", "--load_fast=false", f"--samples_per_plugin={samples}"))
    return TensorBoardWSGIApp(
        program.flags, plugins, provider(feed), assets.get_default_assets_zip_provider(), feed.multiplexer
    )
