"""The near end of the tunnel to a far server, with a shell in place of ssh; the whole way is tested on a real one."""

from __future__ import annotations

import subprocess
import threading

from truba_runner.tensorboard.tunnel import MARK, Tunnel


class Connection:
    """A local command as the far end."""

    login = "login"

    def __init__(self, ended: threading.Event) -> None:
        self.asked_for: list[str] = []
        self._ended = ended

    def open(self, command: str) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process

    def forward(self, port: int, far_socket: str) -> bool:
        self.asked_for.append(far_socket)
        self._ended.set()
        return True

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def asked_for(far_end: str) -> list[str]:
    """The sockets that a port was to lead to until there was one."""
    ended = threading.Event()
    connection = Connection(ended)
    Tunnel(connection, far_end, None).hold(lambda url: None, ended)  # type: ignore[arg-type]
    return connection.asked_for


def test_a_far_end_that_is_long_in_starting_hears_us_meanwhile() -> None:
    assert asked_for(f'head -c 30 > /dev/null; echo \'{MARK}{{"socket": "there"}}\'; exec sleep 60') == ["there"]


def test_a_far_end_that_ends_as_soon_as_it_serves_is_no_fault() -> None:
    words = [f'{MARK}{{"socket": "there"}}', f'{MARK}{{"ended": "left"}}']
    assert asked_for(f"printf '%s\\n%s\\n' '{words[0]}' '{words[1]}'; exec sleep 60") == ["there"]
