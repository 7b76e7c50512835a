"""A laptop for the test cluster: another user in a network namespace linked to the login node, with a browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from browser import COMMAND, Browser
from cluster import Cluster, wait_until

ROOT = Path(__file__).resolve().parents[2]
LOGIN_ADDRESS, LAPTOP_ADDRESS = "10.88.0.1", "10.88.0.2"
AYSE, MEHMET, LEYLA = 60001, 60002, 60003
NEEDED = ("sshd", "ssh", "rsync", "chromium-headless-shell")
SSHD_CONFIG = """
ListenAddress {address}:22
ListenAddress {address}:2222
HostKey {folder}/host_key
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowUsers ayse
SetEnv PATH={bin}:{python}:/usr/bin:/bin SLURM_CONF={cluster}/etc/slurm.conf TRUBA_SCRATCH={cluster}/scratch \
TRUBA_CLUSTER=testcluster XDG_STATE_HOME={state} PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
Match LocalPort 2222
  AllowStreamLocalForwarding no
"""
SSH_CONFIG = """
# The same machine, for a laptop that is to notice soon that its cable is cut.
Host watched
  ServerAliveInterval 1
  ServerAliveCountMax 5
Host login watched
  HostName {address}
  User ayse
  IdentityFile {home}/.ssh/id_ed25519
  IdentitiesOnly yes
  StrictHostKeyChecking yes
  ConnectTimeout 30
  ServerAliveInterval 5
  ServerAliveCountMax 6
# The same machine, with what some have in their configuration.
Host commanded
  HostName {address}
  User ayse
  IdentityFile {home}/.ssh/id_ed25519
  StrictHostKeyChecking yes
  RemoteCommand top
  RequestTTY force
  LocalForward 6006 localhost:22
# The same machine, where no socket is led to.
Host closed
  HostName {address}
  Port 2222
  User ayse
  IdentityFile {home}/.ssh/id_ed25519
  StrictHostKeyChecking yes
# The same machine, under a name for which no host key is known.
Host stranger
  HostName {address}
  HostKeyAlias stranger
  StrictHostKeyChecking yes
"""


def missing() -> str:
    """Return the names of the programs that the laptop needs and this machine lacks."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return ", ".join(name for name in NEEDED if shutil.which(name, path=path) is None)


class Laptop:
    """The laptop of a user leyla, who is ayse on the login node."""

    def __init__(self, cluster: Cluster, state: Path) -> None:
        """`state` is ayse's XDG_STATE_HOME, where truba keeps the list of her runs folders."""
        self.cluster, self.state = cluster, state
        self.home = cluster.folder / "home" / "leyla"
        self._folder = cluster.folder / "ssh"
        self._programs: list[Program] = []
        self._add_user()
        self._make_keys()
        self._plug_in()
        self._start_sshd()

    # -- building it -------------------------------------------------------------------------------------------

    def _add_user(self) -> None:
        entries = {"passwd": f"leyla:x:{LEYLA}:{LEYLA}::{self.home}:/bin/bash", "group": f"leyla:x:{LEYLA}:"}
        for name, line in entries.items():
            with (self.cluster.folder / "etc" / name).open("a") as file:
                file.write(line + "\n")
        self.home.mkdir(mode=0o700)
        (self.home / ".ssh").mkdir(mode=0o700)
        opener = self.home / "open-page"
        opener.write_text('#!/bin/sh\necho "$1" >> "$HOME/opened"\n')
        opener.chmod(0o755)

    def _make_keys(self) -> None:
        self._folder.mkdir(mode=0o755)
        for key in (self._folder / "host_key", self.home / ".ssh" / "id_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        ssh = self.home / ".ssh"
        (ssh / "config").write_text(SSH_CONFIG.format(address=LOGIN_ADDRESS, home=self.home))
        key = (self._folder / "host_key.pub").read_text()
        (ssh / "known_hosts").write_text(f"{LOGIN_ADDRESS},[{LOGIN_ADDRESS}]:2222 {key}")
        subprocess.run(["chown", "-R", f"{LEYLA}:{LEYLA}", str(self.home)], check=True)
        authorized = self.cluster.folder / "home" / "ayse" / ".ssh"
        authorized.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(ssh / "id_ed25519.pub", authorized / "authorized_keys")
        subprocess.run(["chown", "-R", "60001:60001", str(authorized)], check=True)

    def _plug_in(self) -> None:
        self._as_root(
            f"""ip netns add laptop
            ip link add to-laptop type veth peer name eth0 netns laptop
            ip address add {LOGIN_ADDRESS}/24 dev to-laptop
            ip link set to-laptop up
            ip -netns laptop link set lo up
            ip -netns laptop address add {LAPTOP_ADDRESS}/24 dev eth0
            ip -netns laptop link set eth0 up
            mkdir -p /run/sshd"""
        )

    def _start_sshd(self) -> None:
        bin = self._folder / "bin"
        bin.mkdir()
        (bin / "truba").write_text(f'#!/bin/sh\nexec {sys.executable} -m truba_runner "$@"\n')
        for file in bin.iterdir():
            file.chmod(0o755)
        config = self._folder / "sshd_config"
        python = Path(sys.executable).parent
        config.write_text(
            SSHD_CONFIG.format(
                address=LOGIN_ADDRESS, folder=self._folder, bin=bin, python=python, cluster=self.cluster.folder,
                state=self.state, root=ROOT,
            )
        )  # fmt: skip
        log = self._folder / "sshd.log"
        argv = ["/usr/sbin/sshd", "-D", "-f", str(config), "-E", str(log)]
        self._sshd = self.cluster.popen(argv, user="root", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: log.exists() and "listening" in log.read_text(), lambda: log.read_text())

    def close(self) -> None:
        self._sshd.terminate()
        self._sshd.wait(240)

    # -- using it ----------------------------------------------------------------------------------------------

    def command(self, *argv: str, **variables: str) -> list[str]:
        """Return the command line that runs `argv` on the laptop."""
        environment = {
            "HOME": str(self.home),
            "USER": "leyla",
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
            "BROWSER": str(self.home / "open-page"),
            **variables,
        }
        become = ["setpriv", "--reuid", str(LEYLA), "--regid", str(LEYLA), "--clear-groups", "--inh-caps=-all"]
        settings = [f"{name}={value}" for name, value in environment.items()]
        inside = ["nsenter", "--net=/run/netns/laptop", *become, "env", "--ignore-environment", *settings, *argv]
        return self.cluster.command(inside, user="root", cwd=self.home)

    def start(self, *arguments: str, **variables: str) -> Program:
        """Start `truba` on the laptop."""
        self._programs.append(
            Program(self, self.command(sys.executable, "-m", "truba_runner", *arguments, **variables))
        )
        return self._programs[-1]

    def end_programs(self) -> None:
        """Kill the programs that a failed test has left running."""
        for pid in self.processes("truba_runner"):
            os.kill(pid, signal.SIGKILL)
        for program in self._programs:
            program.process.kill()
            program.process.wait(240)
        self._programs.clear()

    def truba(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        argv = self.command(sys.executable, "-m", "truba_runner", *arguments, **variables)
        return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL)

    def browse(self) -> Browser:
        argv = self.command("/bin/sh", "-c", COMMAND, "sh", str(self.home / "browser"))
        with (self._folder / "browser.log").open("wb") as errors:
            return Browser(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors))

    def get(self, url: str) -> subprocess.CompletedProcess[str]:
        """Request a URL from a program on the laptop; the answer is its standard output."""
        program = (
            "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1], timeout=240).read().decode())"
        )
        argv = self.command(sys.executable, "-c", program, url)
        return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)

    def processes(self, *words: str, uid: int = LEYLA) -> list[int]:
        """Return ids of a user's processes on the laptop or login node whose command line contains all the words."""
        here = os.readlink(f"/proc/{(self.cluster.folder / 'pid').read_text().strip()}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or entry.stat().st_uid != uid:
                    continue
                if os.readlink(entry / "ns" / "pid") != here:
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if command and all(word in command for word in words):
                found.append(int(entry.name))
        return found

    def far_servers(self) -> list[int]:
        """Return the process ids of ayse's TensorBoard servers on the login node."""
        return self.processes("truba_runner tensorboard", uid=AYSE)

    def unplug(self) -> None:
        self._as_root("ip -netns laptop link set eth0 down")

    def plug_in_again(self) -> None:
        self._as_root("ip -netns laptop link set eth0 up")

    def _as_root(self, script: str) -> None:
        self.cluster.run(["/bin/sh", "-ec", script], user="root")


class Program:
    """A running `truba` on the laptop."""

    def __init__(self, laptop: Laptop, argv: list[str]) -> None:
        self.laptop = laptop
        (laptop.home / "opened").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.told = {"out": "", "err": ""}
        for name, stream in (("out", self.process.stdout), ("err", self.process.stderr)):
            threading.Thread(target=self._read, args=(name, stream), daemon=True).start()

    def _read(self, name: str, stream: Any) -> None:
        with stream:
            for line in stream:
                self.told[name] += line

    def wait_for(self, words: str, where: str = "err", seconds: float = 240) -> None:
        wait_until(lambda: words in self.told[where], lambda: f"{words!r} is not in {self.told}", seconds)

    def url(self, seconds: float = 240) -> str:
        """Wait until it opens a page and return the page's URL."""
        opened = self.laptop.home / "opened"
        wait_until(
            lambda: (opened.exists() and opened.read_text().endswith("\n")) or self.process.poll() is not None,
            lambda: f"no page was opened: {self.told}", seconds,
        )  # fmt: skip
        assert self.process.poll() is None, self.told
        return opened.read_text().split()[-1]

    def interrupt(self) -> int:
        """Send SIGINT to every foreground process, as Ctrl-C does; return the exit status."""
        # List all processes before the first signal, which may end others: Ctrl-C reaches all at once.
        for pid in [pid for name in ("rsync", "truba_runner", "ssh") for pid in self.laptop.processes(name)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        return self.process.wait(240)


def listening(cluster: Cluster, user: str) -> list[str]:
    """Return the addresses of the listening TCP ports that a user sees on the login node."""
    shown = cluster.run(["ss", "-ltnH"], user=user, cwd="/").stdout
    return sorted(line.split()[3] for line in shown.splitlines())
