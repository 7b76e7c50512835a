"""Download files over HTTP; an access token is sent to the given host only, not to one that it redirects to."""

from __future__ import annotations

import shutil
import urllib.request
from http.client import HTTPException
from typing import IO, Any
from urllib.parse import urlsplit

from truba_runner.language import _

TIMEOUT_SECONDS = 10
CHUNK_BYTES = 1 << 20


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; a hub sends large files from another host, which must not see the token."""

    # Python follows a redirect with status 308 only from 3.11 on.
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302

    def redirect_request(self, req: urllib.request.Request, *rest: Any) -> urllib.request.Request | None:
        following = super().redirect_request(req, *rest)
        if following is not None and urlsplit(following.full_url).netloc != urlsplit(req.full_url).netloc:
            following.remove_header("Authorization")
        return following


def read(url: str, token: str = "") -> bytes:
    """Return the content at a URL.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with _open(url, token) as answer:
            content: bytes = answer.read()
            return content
    except HTTPException as error:
        raise _invalid(url, error) from error


def save(url: str, file: IO[bytes], token: str = "") -> None:
    """Write the content at a URL to a file.

    Raises:
        OSError: the download failed or is incomplete.
    """
    try:
        with _open(url, token) as answer:
            shutil.copyfileobj(answer, file, CHUNK_BYTES)
            announced = answer.headers.get("Content-Length")
    except HTTPException as error:
        raise _invalid(url, error) from error
    if announced is not None and file.tell() != int(announced):
        message = _(
            "the download of {url} stopped after {count} of {total} bytes", url=url, count=file.tell(), total=announced
        )
        raise OSError(message)


def _open(url: str, token: str) -> Any:
    headers = {"User-Agent": "truba_runner", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_SECONDS)


def _invalid(url: str, error: HTTPException) -> OSError:
    return OSError(_("{url} sent an invalid HTTP response: {error!r}", url=url, error=error))
