from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_shapes import progress_from
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import last_job_id, state_of
from truba_runner.slurm.jobs import Job
from truba_runner.slurm.states import STATES
from truba_runner.why import cases
from truba_runner.why.table import meaning


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "mnist-00000000")
    made.create()
    made.append_submission(Event(Kind.INTENT, token="t", job_name="mnist-00000000.t"))
    made.append_submission(Event(Kind.SUBMITTED, token="t", job_id="7"))
    return made


def progress(run: RunDir, **values: object) -> None:
    run.write_progress(progress_from({"job_id": "7", "host": "akya1", "pid": 1, "started": 0, "updated": 9} | values))


@pytest.mark.parametrize("word", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"])
def test_a_job_in_the_queue_is_live_in_slurms_own_word(run: RunDir, word: str) -> None:
    state = state_of(run.record(), {"7": Job("7", word, reason="Priority")})
    assert (state.state, state.live, state.why) == (word, True, "Priority")


def test_a_job_that_left_a_bad_node_says_so_until_it_starts_again(run: RunDir) -> None:
    job = {"7": Job("7", "PENDING", reason="BeginTime")}
    run.append_submission(Event(Kind.LOOKED, job_id="7", node="akya2"))
    run.append_submission(Event(Kind.BAD_NODE, job_id="7", node="akya2", check="gpus", message="3 of 4 GPUs"))
    assert state_of(run.record(), job).why == "BeginTime; left akya2, a bad node (gpus: 3 of 4 GPUs)"
    run.append_submission(Event(Kind.LOOKED, job_id="7", node="akya1"))
    assert state_of(run.record(), job).why == "BeginTime"


def test_why_a_run_failed_is_told_while_slurm_still_clears_its_job_away(run: RunDir) -> None:
    progress(run, state="failed", error={"type": "Failed", "message": "the disk is full"})
    state = state_of(run.record(), {"7": Job("7", "COMPLETING", reason="NonZeroExitCode")})
    assert (state.live, state.why) == (True, "the disk is full")


def test_a_failed_line_of_the_set_up_is_the_reason_also_where_slurm_has_forgotten(run: RunDir) -> None:
    reason = "environment.setup: exit status 127: conda activate nothing"
    (run.logs / "7_0_log.out").write_text(f"script: conda: command not found\n{reason}\n")
    told = [state_of(run.record(), {"7": Job("7", "FAILED", exit_code=code)}).why for code in ("94:0", "1:0")]
    assert told == [reason, "exit code 1:0"], "a training's own line of this kind is no reason"
    assert (state_of(run.record(), {}).state, state_of(run.record(), {}).why) == ("FAILED", reason)
    progress(run, state="running")
    assert state_of(run.record(), {}).why != reason


def test_a_result_means_completed_even_where_slurm_has_forgotten(run: RunDir) -> None:
    run.write_result({"metrics": {}, "steps": 1})
    assert state_of(run.record(), {}).state == "COMPLETED"
    assert state_of(run.record(), None).state == "COMPLETED"


def test_why_a_run_was_dropped_is_known_whatever_comes_on_record_after_it(run: RunDir) -> None:
    """The canary may fail before the command has put the number of the job on record that waits for it."""
    jobs = {"7": Job("7", "CANCELLED")}
    run.append_submission(Event(Kind.DROPPED, token="t", why="the canary has failed"))
    run.append_submission(Event(Kind.SUBMITTED, token="t", job_id="7"))
    assert state_of(run.record(), jobs).why == "the canary has failed"
    assert cases._on_record(run, jobs).dropped == "the canary has failed"
    run.append_submission(Event(Kind.INTENT, token="u", job_name="mnist-00000000.u"))
    run.append_submission(Event(Kind.SUBMITTED, token="u", job_id="7"))
    assert state_of(run.record(), jobs).why == "cancelled; the same command resumes it"


def test_a_job_that_ended_well_without_a_result_did_not_train(run: RunDir) -> None:
    assert state_of(run.record(), {"7": Job("7", "COMPLETED", exit_code="0:0")}).state == "FAILED"


@pytest.mark.parametrize("word", ["TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED", "PREEMPTED"])
def test_how_slurm_ended_it_is_told(run: RunDir, word: str) -> None:
    progress(run, state="running")
    state = state_of(run.record(), {"7": Job("7", word)})
    assert state.state == word and "the same command" in state.why and "resumes it" in state.why


def test_a_cancelled_job_that_saved_is_cancelled_and_no_riddle(run: RunDir) -> None:
    progress(run, state="interrupted")
    assert state_of(run.record(), {"7": Job("7", "CANCELLED")}).why == "cancelled; the same command resumes it"
    assert (
        state_of(run.record(), {"7": Job("7", "FAILED", exit_code="143:0")}).why
        == "interrupted; the same command resumes it"
    )


def test_our_own_sentence_for_a_failure_stands_alone(run: RunDir) -> None:
    progress(run, state="failed", error={"type": "Failed", "message": "the disk is full"})
    assert state_of(run.record(), {}).why == "the disk is full"


def test_a_failure_names_the_users_line(run: RunDir) -> None:
    error = {"type": "ValueError", "message": "no", "file": "/p/jobs/own.py", "line": 3, "code": "raise ValueError"}
    progress(run, state="failed", error=error)
    assert (
        state_of(run.record(), {"7": Job("7", "FAILED")}).why == "ValueError: no at /p/jobs/own.py:3: raise ValueError"
    )
    assert state_of(run.record(), {}).state == "FAILED"


def test_what_slurm_has_forgotten_is_told_from_the_run_directory_and_never_guessed(run: RunDir) -> None:
    assert (state_of(run.record(), {}).state, state_of(run.record(), {}).why) == (
        "UNKNOWN",
        "Slurm does not know its job, and it never started",
    )
    progress(run, state="running")
    assert (state_of(run.record(), {}).state, state_of(run.record(), {}).live) == ("LOST", False)
    progress(run, state="interrupted")
    assert state_of(run.record(), {}).state == "INTERRUPTED"


def test_a_run_that_saved_where_no_job_comes_back_has_not_failed(run: RunDir) -> None:
    failed = {"7": Job("7", "FAILED", exit_code="143:0")}
    progress(run, state="interrupted")
    assert state_of(run.record(), failed).state == "FAILED", "a later start of a requeued job may have"
    run.append_submission(Event(Kind.INTENT, token="u", job_name="mnist-00000000.u", request={"requeue": False}))
    run.append_submission(Event(Kind.SUBMITTED, token="u", job_id="7"))
    state = state_of(run.record(), failed)
    assert (state.state, state.live, state.why) == ("INTERRUPTED", False, "interrupted; the same command resumes it")
    assert state_of(run.record(), {"7": Job("7", "CANCELLED")}).state == "CANCELLED"
    progress(run, state="running")
    assert state_of(run.record(), failed).state == "FAILED"


def test_silence_of_slurm_is_not_taken_for_an_answer(run: RunDir) -> None:
    progress(run, state="running")
    assert (state_of(run.record(), None).state, state_of(run.record(), None).live) == ("UNKNOWN", False)


def test_what_an_earlier_job_left_is_not_the_present_ones(run: RunDir) -> None:
    progress(run, state="failed", error={"type": "E", "message": "old"})
    run.append_submission(Event(Kind.SUBMITTED, token="u", job_id="8"))
    assert "old" not in state_of(run.record(), {"8": Job("8", "FAILED", exit_code="1:0")}).why


def test_a_job_that_was_taken_twice_does_not_count(run: RunDir) -> None:
    run.append_submission(Event(Kind.STARTED, job_id="9", job_name="mnist-00000000.t"))
    run.append_submission(Event(Kind.DUPLICATE, job_id="9"))
    assert last_job_id(run) == "7"


def test_a_local_run_is_live_while_its_own_process_is(run: RunDir) -> None:
    run.append_submission(Event(Kind.LOCAL, job_id="local-1"))
    with subprocess.Popen([sys.executable, "-c", "input()", run.id], stdin=subprocess.PIPE) as worker:
        progress(run, job_id="local-1", state="running", host=socket.gethostname(), pid=worker.pid)
        assert (state_of(run.record(), {}).state, state_of(run.record(), {}).live) == ("RUNNING", True)
        worker.communicate(b"\n")
    assert state_of(run.record(), {}).state == "LOST"
    progress(run, job_id="local-1", state="running", host=socket.gethostname(), pid=os.getpid())
    assert state_of(run.record(), {}).state == "LOST", "another process that has the number now is not the run"


def test_a_process_lives_before_its_command_line_is_there_and_not_when_only_that_is_gone(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    read = Path.read_bytes

    def of_a_start(path: Path) -> bytes:
        looks.append(path)
        return b"" if path.name == "cmdline" and len(looks) == 1 else read(path)

    with subprocess.Popen([sys.executable, "-c", "input()", run.id], stdin=subprocess.PIPE) as worker:
        run.append_submission(Event(Kind.LOCAL, job_id="local-1", pid=worker.pid, host=socket.gethostname()))
        monkeypatch.setattr(Path, "read_bytes", of_a_start)
        assert state_of(run.record(), {}).state == "RUNNING" and len(looks) > 1
        assert worker.stdin is not None
        worker.stdin.close()
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        monkeypatch.undo()
        assert state_of(run.record(), {}).live is False


def test_a_task_that_was_cancelled_before_it_began_is_in_its_arrays_row(run: RunDir) -> None:
    run.append_submission(Event(Kind.SUBMITTED, token="t", job_id="9_4"))
    assert state_of(run.record(), {"9": Job("9", "CANCELLED", reason="JobArrayTaskLimit")}).state == "CANCELLED"
    assert state_of(run.record(), {"9": Job("9", "PENDING"), "9_4": Job("9_4", "RUNNING")}).state == "RUNNING"
    assert state_of(run.record(), {"9": Job("9", "PENDING")}).state == "UNKNOWN"


def test_a_job_that_waits_in_vain_for_another_is_in_the_queue_all_the_same(run: RunDir) -> None:
    state = state_of(run.record(), {"7": Job("7", "PENDING", reason="DependencyNeverSatisfied")})
    assert (state.state, state.live, state.why) == ("PENDING", True, "DependencyNeverSatisfied")


LIVE = {"PENDING", "RUNNING", "SUSPENDED"}
ENDED = {
    "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY",
    "REVOKED",
}  # fmt: skip
HELD = {"RESV_DEL_HOLD", "REQUEUE_HOLD", "SPECIAL_EXIT"}
# The flags of https://slurm.schedmd.com/job_state_codes.html as of 26.05; EXPEDITING came with 25.11.
FLAGS = {
    "COMPLETING", "CONFIGURING", "EXPEDITING", "LAUNCH_FAILED", "POWER_UP_NODE", "RECONFIG_FAIL", "REQUEUED",
    "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "UPDATE_DB",
}  # fmt: skip


def test_the_table_has_every_state_and_what_becomes_of_a_job_in_it() -> None:
    assert set(STATES) == LIVE | ENDED | HELD | FLAGS
    assert {word for word, means in STATES.items() if not means.live} == ENDED
    assert {word for word, means in STATES.items() if means.held} == HELD
    silent = {word for word in STATES if (meaning("ended", word) is None)}
    # What else these come to is told from the reason, the result and the log.
    assert silent == {"PENDING", "COMPLETED", "FAILED"}


def test_the_table_has_every_state_that_the_installed_slurm_prints() -> None:
    library = next(iter(Path("/usr/lib").glob("*/slurm-wlm/libslurmfull.so")), None)
    if library is None:
        pytest.skip("no Slurm is installed")
    word_of = ctypes.CDLL(str(library)).slurm_job_state_string
    word_of.restype, word_of.argtypes = ctypes.c_char_p, [ctypes.c_uint32]
    # The lowest byte is the state, each bit above it a flag.
    printed = {word_of(number).decode() for number in (*range(64), *(1 << bit for bit in range(8, 32)))}
    assert len(printed) > 20 and printed - {"?"} <= set(STATES)


@pytest.mark.parametrize("word", [*sorted(HELD), "A_STATE_OF_2030"])
def test_a_job_that_is_held_or_in_a_state_unheard_of_is_in_the_queue(run: RunDir, word: str) -> None:
    state = state_of(run.record(), {"7": Job("7", word)})
    assert state.live and state.why and state.why != word


def test_a_state_without_words_stays_without_words_in_turkish(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUBA_LANG", "tr")
    assert state_of(run.record(), {"7": Job("7", "RUNNING")}).why == ""
