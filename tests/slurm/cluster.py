"""A real Slurm cluster for tests: slurm/testcluster, around a keeper process that exits when this process does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import pytest

TESTCLUSTER = Path(__file__).resolve().parents[2] / "slurm" / "testcluster"
EXIT_UNAVAILABLE = 77
START_TIMEOUT_SECONDS = 300.0
POLL_SECONDS = 0.1
# States after which Slurm does not requeue a job.
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"})

# Print the cluster's folder, then run until standard input closes: the kernel closes it however pytest ends.
KEEPER = 'echo "$TRUBA_TESTCLUSTER_INSIDE"; exec cat >/dev/null'


def left_out(reason: str) -> NoReturn:
    """Skip a test for a requirement that this machine lacks; with TRUBA_REQUIRE_SLURM=1, fail it."""
    if os.environ.get("TRUBA_REQUIRE_SLURM") == "1":
        pytest.fail(f"TRUBA_REQUIRE_SLURM=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def wait_until(
    condition: Callable[[], Any], why: Callable[[], Any] = lambda: "not in time", seconds: float = 240
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(POLL_SECONDS)


class ClusterUnavailable(Exception):
    """This machine can't have a cluster: not root, or Slurm isn't installed."""


class Cluster:
    """A running cluster. Users are `ayse` (160 cores), `mehmet` (4 cores) and `root`."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """Start a cluster and wait until its nodes are idle.

        `settings` are environment variables for `slurm/testcluster/run`, such as `TRUBA_TESTCLUSTER_KILL_WAIT`.

        Raises:
            ClusterUnavailable: on a machine that can't have one.
            RuntimeError: the cluster did not start.
        """
        environment = {"TRUBA_PYTHON": sys.executable, **os.environ, **(settings or {})}
        self._keeper = subprocess.Popen(
            [TESTCLUSTER / "run", "--cwd", "/", "/bin/sh", "-c", KEEPER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C for pytest must not end the cluster before the tests have cleaned up
        )
        assert self._keeper.stdout is not None and self._keeper.stderr is not None
        folder = self._keeper.stdout.readline().strip()
        if not folder:
            self._keeper.stdout.close()
            reason = self._keeper.stderr.read().strip()
            self._keeper.stderr.close()
            self._close_input()
            status = self._keeper.wait(START_TIMEOUT_SECONDS)
            if status == EXIT_UNAVAILABLE:
                raise ClusterUnavailable(reason.removeprefix("testcluster: "))
            raise RuntimeError(f"the test cluster did not start (exit status {status}):\n{reason}")
        self.folder = Path(folder)

    def close(self) -> None:
        """Stop the cluster, which deletes its folder."""
        assert self._keeper.stdout is not None and self._keeper.stderr is not None
        self._close_input()
        try:
            self._keeper.wait(240)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._keeper.stdout.close()
        self._keeper.stderr.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close_input(self) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()

    @property
    def scratch_root(self) -> Path:
        """The folder under which job output must be; inside the cluster it is `TRUBA_SCRATCH`."""
        return self.folder / "scratch"

    def scratch(self, user: str = "ayse") -> Path:
        """Return a user's scratch folder; the path is the same inside and outside the cluster."""
        return self.scratch_root / user

    def log(self, daemon: str = "slurmctld") -> str:
        """Return the log of `slurmctld`, `slurmdbd` or a node (`slurmd-akya1`) so far."""
        return (self.folder / "log" / f"{daemon}.log").read_text(errors="replace")

    def command(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        user: str = "ayse",
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return the command line that runs `argv` in the cluster as `user`, in `cwd` (default: the user's scratch)."""
        enter = [str(TESTCLUSTER / "enter"), "--cluster", str(self.folder), "--user", user]
        enter += ["--cwd", str(cwd or self.scratch(user)), "--"]
        if env:
            enter += ["env", *(f"{name}={value}" for name, value in env.items())]
        return [*enter, *(os.fspath(word) for word in argv)]

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        user: str = "ayse",
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 240,
        check: bool = True,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the cluster and return its output.

        Users other than root get a clean environment, to which `env` is added.

        Raises:
            AssertionError: with `check`, the command failed; the message contains its output.
            subprocess.TimeoutExpired: the command took longer than `timeout` seconds and was killed.
        """
        process = self.popen(
            argv, user=user, cwd=cwd, env=env, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE
        )
        with process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            raise AssertionError(
                f"{[os.fspath(word) for word in argv]} as {user}: exit status {process.returncode}\n{stdout}{stderr}"
            )
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        user: str = "ayse",
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start a command inside the cluster.

        Signals sent to the Popen (INT, TERM, HUP, USR1, USR2) reach the command; killing it kills the command.
        """
        return subprocess.Popen(
            self.command(argv, user=user, cwd=cwd, env=env), stdin=stdin, stdout=stdout, stderr=stderr, text=True
        )

    def sbatch(self, arguments: Sequence[str], script: str, *, user: str = "ayse") -> str:
        """Submit a shell script and return the job's id."""
        submitted = self.run(["sbatch", "--parsable", *arguments], user=user, input=f"#!/bin/bash\n{script}\n")
        return submitted.stdout.strip().split(";")[0]

    def module(self, name: str, first_on_path: Path) -> None:
        """Make a module that puts a folder first on the PATH; a shell has `module` once it has read /etc/profile."""
        file = self.folder / "modules" / f"{name}.lua"
        if not (self.folder / "modules").exists():
            left_out("Lmod is not installed")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'prepend_path("PATH", "{first_on_path}")\n')

    def preempt(self, nodes: Sequence[str]) -> str:
        """Submit a short job of root's for these whole nodes of akya-cuda, which preempts lowprio's jobs on them."""
        whole = ["-p", "akya-cuda", "-A", "root", f"-N{len(nodes)}", f"-w{','.join(nodes)}", "--ntasks-per-node=1"]
        wanted = [*whole, "-c40", "--gres=gpu:4", "-t1", f"--output={self.scratch('root')}/%j.log", "--wrap", "true"]
        return self.run(["sbatch", "--parsable", *wanted], user="root", cwd=self.scratch("root")).stdout.strip()

    def states(self, job_id: str, *, in_accounting: bool = False) -> list[str]:
        """Return the states of a job, one for each task of an array; empty for a job that isn't known (yet).

        The controller knows at once and forgets after five minutes; accounting lags by up to some seconds.
        """
        if in_accounting:
            argv = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job_id}"]
        else:
            argv = ["squeue", "--noheader", "--array", "--states=all", "--format=%T", f"--jobs={job_id}"]
        answer = self.run(argv, user="root", check=False)
        return [line.split()[0] for line in answer.stdout.splitlines() if line.strip()]

    def wait_for_state(
        self, job_id: str, states: str | Collection[str], timeout: float = 240, *, in_accounting: bool = False
    ) -> str:
        """Wait until a job (every task of an array) is in one of the states, such as `COMPLETED`, and return that.

        With `in_accounting`, also wait until the job's nodes are cleared, which may come later.

        Raises:
            AssertionError: the job has ended in another state.
            TimeoutError: the job was in none of the states within `timeout` seconds.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        deadline = time.monotonic() + timeout
        while True:
            seen = self.states(job_id, in_accounting=in_accounting)
            cleared = not in_accounting or "COMPLETING" not in self.states(job_id)
            if seen and wanted.issuperset(seen) and cleared:
                return seen[0]
            if seen and not in_accounting and ENDED.issuperset(seen):
                raise AssertionError(f"job {job_id} ended {seen}, not {sorted(wanted)}\n{self._describe(job_id)}")
            if time.monotonic() > deadline:
                late = f"job {job_id} is {seen or 'unknown'} after {timeout} s, not {sorted(wanted)}"
                raise TimeoutError(f"{late}\n{self._describe(job_id)}")
            time.sleep(POLL_SECONDS)

    def wait_for_reason(self, job_id: str, timeout: float = 240) -> None:
        """Wait until the scheduler has given the reason for which a job is pending.

        Raises:
            TimeoutError: it gave none within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        argv = ["squeue", "--noheader", "--format=%r", f"--jobs={job_id}"]
        while self.run(argv, user="root").stdout.strip() == "None":
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing is said of job {job_id} after {timeout} s\n{self._describe(job_id)}")
            time.sleep(POLL_SECONDS)

    def _describe(self, job_id: str) -> str:
        shown = self.run(["scontrol", "show", "job", job_id], user="root", check=False).stdout
        for line in shown.splitlines():
            name, _, path = line.strip().partition("=")
            if name == "StdOut" and os.path.isfile(path):
                shown += f"--- end of its output\n{Path(path).read_text(errors='replace')[-2000:]}"
        return shown

    def node_down(self, name: str) -> None:
        """Fail a node like a power loss: its processes and its network vanish at once, without notice."""
        subprocess.run([TESTCLUSTER / "node", "--cluster", self.folder, "down", name], check=True, timeout=240)

    def node_up(self, name: str, timeout: float = 240) -> None:
        """Start a node that was taken down, and wait until it has registered and the controller can use it again.

        Raises:
            TimeoutError: it was not usable within `timeout` seconds.
        """
        heard_of_before = self._slurmd_start_time(name)
        subprocess.run([TESTCLUSTER / "node", "--cluster", self.folder, "up", name], check=True, timeout=240)
        deadline = time.monotonic() + timeout
        while self._slurmd_start_time(name) == heard_of_before and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self.wait_for_node(name, {"idle", "mixed", "allocated"}, timeout)

    def _slurmd_start_time(self, name: str) -> str:
        shown = self.run(["scontrol", "--oneliner", "show", "node", name], user="root").stdout
        return shown.partition("SlurmdStartTime=")[2].split()[0]

    def wait_for_node(self, name: str, states: Collection[str], timeout: float = 240) -> str:
        """Wait until a node is in one of the states (sinfo's long names; with `*`: it doesn't respond); return that.

        Raises:
            TimeoutError: the node was in none of the states within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            argv = ["sinfo", "--noheader", "--Node", f"--nodes={name}", "--format=%T"]
            state = self.run(argv, user="root").stdout.split()[0]
            if state in states:
                return state
            if time.monotonic() > deadline:
                raise TimeoutError(f"node {name} is {state} after {timeout} s, not {sorted(states)}")
            time.sleep(POLL_SECONDS)
