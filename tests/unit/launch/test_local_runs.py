"""A run in the foreground: its job module is imported first, so that no framework is needed to see how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import truba

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[3]
FAULTY = "import math\n\nmath.sqrt(-1)  # the fault\n"
# Is cleared with the modules, when Python has taken its handlers away.
LATE = """
import os, signal, sys

class Late:
    def __del__(self, kill=os.kill, write=os.write, process=os.getpid(), number=signal.SIGUSR2):
        kill(process, number)
        write(2, b"the signal came\\n")

sys.late = Late()
"""
WAITING = "import time\nprint('here I am', flush=True)\nwhile True:\n    time.sleep(0.05)\n"
# Reports progress as a backend does, then waits to be looked at.
REPORTING = """
import json, time
from pathlib import Path
record = json.loads(Path("progress.json").read_text())
record |= {"epoch": 1, "epochs": 2, "step": 5, "steps_per_epoch": 10, "metrics": {"loss": 0.5}}
Path("progress.json").write_text(json.dumps(record))
print("a line of the log", flush=True)
while not Path("end").exists():
    time.sleep(0.05)
raise RuntimeError("failing on purpose")
"""


class Project:
    """A folder in which someone trains: with `start`, by a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
        self.environment |= {"COLUMNS": "200", "TRUBA_CLUSTER": "local"}

    def command(self, code: str) -> list[str]:
        (self.folder / "jobs" / "own.py").write_text(code)
        return [sys.executable, "-m", "truba_runner", "+experiment=mnist", "job.module=own", "data.name=digits"]

    def start(self, code: str, *overrides: str, **options: object) -> subprocess.Popen[str]:
        # Even where the tests themselves run under nohup.
        argv = ["env", "--default-signal=HUP", *self.command(code), *overrides]
        return subprocess.Popen(argv, cwd=self.folder, env=self.environment, text=True, **options)  # type: ignore[call-overload, no-any-return]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command in this process; a run that it starts has a process of its own."""
        return truba(*arguments, cwd=self.folder, environment=self.environment)

    def submit(self, code: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        return self.call(*self.command(code)[3:], *overrides)

    def status(self) -> dict[str, object]:
        (row,) = json.loads(self.call("status", "--json").stdout)
        return dict(row)

    @property
    def run_dir(self) -> Path:
        (found,) = (path for path in (self.folder / "runs").iterdir() if not path.name.startswith("."))
        return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_fault_in_the_users_code(project: Project) -> None:
    with project.start(FAULTY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        out, err = command.communicate(timeout=240)
    assert command.returncode == 1
    assert "Traceback" in out, "the log is shown as it comes"
    assert "ValueError" in err and "jobs/own.py:3: math.sqrt(-1)  # the fault" in err and "Traceback" not in err
    assert project.status()["state"] == "FAILED"


def test_ctrl_c_ends_the_run_and_says_so(project: Project) -> None:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with project.start(WAITING, **options) as command:
        assert command.stdout is not None
        assert any("here I am" in line for line in iter(command.stdout.readline, ""))
        os.killpg(command.pid, signal.SIGINT)  # As the terminal does: to every process of the group.
        _, err = command.communicate(timeout=240)
    assert command.returncode != 0 and "Traceback" not in err
    assert f"{project.run_dir.name} was interrupted; the same command resumes it" in err and "failed" not in err
    assert project.status()["state"] == "INTERRUPTED"


def test_a_closed_terminal_ends_the_run_as_a_signal_does_but_not_under_nohup(project: Project) -> None:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    with project.start(WAITING, **options) as command:
        assert command.stdout is not None
        assert any("here I am" in line for line in iter(command.stdout.readline, ""))
        command.stdout.close()
        os.killpg(command.pid, signal.SIGHUP)
        assert command.wait(240) == 1
    assert project.status()["state"] == "INTERRUPTED"
    (log,) = (project.run_dir / "logs").iterdir()
    assert log.read_text().count("the terminal was closed") == 1

    argv = ["nohup", *project.command(WAITING)]
    with subprocess.Popen(argv, cwd=project.folder, env=project.environment, text=True, **options) as command:  # type: ignore[call-overload]
        assert any("here I am" in line for line in iter(command.stdout.readline, ""))
        os.killpg(command.pid, signal.SIGHUP)
        assert project.status()["state"] == "RUNNING"
        command.send_signal(signal.SIGTERM)
        command.communicate(timeout=240)
    assert "asked to end" in max((project.run_dir / "logs").iterdir()).read_text()


def test_a_killed_worker_is_told_as_such(project: Project) -> None:
    with project.start(WAITING, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert any("here I am" in line for line in iter(command.stdout.readline, ""))
        assert project.status()["state"] == "RUNNING"
        os.kill(json.loads((project.run_dir / "progress.json").read_text())["pid"], signal.SIGKILL)
        _, err = command.communicate(timeout=240)
    assert command.returncode == 1 and "was killed by SIGKILL; the same command resumes it" in err
    row = project.status()
    assert row["state"] == "KILLED" and "SIGKILL" in str(row["why"])


def test_a_signal_while_the_worker_ends_changes_nothing(project: Project) -> None:
    failed = project.submit(LATE + FAULTY)
    assert failed.returncode == 1 and "the signal came" in failed.stdout
    assert project.status()["state"] == "FAILED", "and not killed"


def test_a_second_command_for_a_running_run_points_at_it(project: Project) -> None:
    with project.start(WAITING, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert any("here I am" in line for line in iter(command.stdout.readline, ""))
        again = project.submit(WAITING)
        assert again.returncode == 0 and "running already" in again.stdout
        assert "cancelled" in project.call("cancel", project.run_dir.name).stdout
        command.communicate(timeout=240)
    assert project.status()["state"] == "INTERRUPTED"


def test_two_commands_at_once_train_once(project: Project) -> None:
    both = [project.start(WAITING, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    pointed = [command for command in both if _first_line(command).startswith(project.run_dir.name)]
    assert len(pointed) == 1, "one of them trains, the other points at it"
    out, _ = pointed[0].communicate(timeout=240)
    assert pointed[0].returncode == 0
    (training,) = (command for command in both if command not in pointed)
    training.send_signal(signal.SIGTERM)  # Passed on to the worker: no process is left behind.
    training.communicate(timeout=240)
    assert project.status()["state"] == "INTERRUPTED"


def _first_line(command: subprocess.Popen[str]) -> str:
    assert command.stdout is not None
    return command.stdout.readline()


def test_a_worker_that_exits_well_without_a_result_has_failed(project: Project) -> None:
    with project.start("import os\nos._exit(0)\n", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        _, err = command.communicate(timeout=240)
    assert command.returncode == 1 and "ended without an error message" in err


def test_a_finished_run_of_other_code_is_pointed_out(project: Project) -> None:
    project.submit(FAULTY)
    (project.run_dir / "result.json").write_text('{"metrics": {"loss": 1.0}}')
    done = project.submit(FAULTY)
    assert done.returncode == 0 and "has finished already" in done.stdout and "WARNING" not in done.stderr
    done = project.submit(FAULTY + "# changed\n")
    assert (
        "has finished already" in done.stdout and "is not the code that" in done.stderr and "fresh=true" in done.stderr
    )


def test_a_run_that_was_begun_is_not_gone_on_with_by_other_code(project: Project) -> None:
    def submitted(code: str, *overrides: str) -> tuple[int, str]:
        done = project.submit(code, *overrides)
        return done.returncode, done.stderr

    assert submitted(FAULTY)[0] == 1
    repaired = FAULTY + "# changed before anything was trained\n"
    assert submitted(repaired)[0] == 1, "it is started: there is no checkpoint that would bind it"
    (project.run_dir / "checkpoints").mkdir()
    (project.run_dir / "checkpoints" / "checkpoint-000002-000000005.ckpt").touch()
    status, err = submitted(FAULTY)
    assert status == 2 and "it has reached epoch 3, step 5 with other code" in err
    assert "own.py has changed since" in err and "fresh=true" in err and "restore the file" in err
    before = (project.run_dir / "submissions.jsonl").read_text()
    assert submitted(repaired)[0] == 1, "put back, it goes on"
    assert len((project.run_dir / "submissions.jsonl").read_text()) > len(before)
    status, err = submitted(FAULTY, "accept_changed_code=true")
    assert status == 1 and "with other code" not in err, "it is the user's to say that the change does no harm"


FILLING = """
from pathlib import Path
folder = Path("checkpoints")
folder.mkdir()
(folder / "checkpoint-000002-000000005.ckpt").touch()
with open("model.keras", "wb", buffering=0) as file:
    while True:
        file.write(bytes(4096))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_at_the_end_is_told_with_what_to_do(project: Project) -> None:
    argv = " ".join(project.command(FILLING))
    status = f"{sys.executable} -m truba_runner status --json"
    mounted = f"mkdir runs && mount -t tmpfs -o size=256k none runs && {{ {argv}; echo exit status $?; {status}; }}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted], cwd=project.folder, env=project.environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "exit status 1" in done.stdout and "Traceback" not in done.stdout + done.stderr
    (row,) = json.loads(done.stdout[done.stdout.index("[\n") :])
    assert row["state"] == "FAILED"
    assert "the disk is full" in row["why"] and "resumes from epoch 3, step 5" in row["why"]


def test_a_sweep_that_fails_says_so_without_hydras_noise(project: Project) -> None:
    project.command(FAULTY)
    argv = [*project.command(FAULTY), "train.seed=1,2", "-m"]
    done = subprocess.run(argv, cwd=project.folder, env=project.environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Error executing job" not in done.stderr and "Traceback" not in done.stderr
    assert len([path for path in (project.folder / "runs").iterdir() if path.name.startswith("mnist")]) == 2


def test_a_person_sees_a_bar_and_a_file_plain_lines(project: Project) -> None:
    ours, theirs = pty.openpty()
    with project.start(REPORTING, stdout=theirs, stderr=theirs) as command:
        os.close(theirs)
        seen = ""

        def shown() -> bool:
            nonlocal seen
            seen += os.read(ours, 65536).decode(errors="replace")
            return "epoch 1/2" in seen and "25%" in seen and "a line of the log" in seen

        wait_until(shown)
        (project.run_dir / "end").touch()
        while True:
            try:
                if not os.read(ours, 65536):
                    break
            except OSError:  # The other end of a terminal has closed.
                break
        command.wait(240)
    os.close(ours)
    log = next((project.run_dir / "logs").iterdir()).read_text()
    assert "a line of the log\n" in log and "\x1b" not in log
