"""The table of reasons, and which of its rows hold for a run; on the real Slurm in tests/slurm/test_why_on_slurm.py."""

from __future__ import annotations

import json
import os
import string
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from in_process import truba

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_shapes import progress_from
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import state_of
from truba_runner.slurm.jobs import Job
from truba_runner.slurm.queries import Start
from truba_runner.storage.package_files import shipped
from truba_runner.training import missing_gpus
from truba_runner.why import evidence
from truba_runner.why.case import Case
from truba_runner.why.cases import cases_of
from truba_runner.why.diagnose import Finding, diagnose
from truba_runner.why.groups import groups
from truba_runner.why.table import SECTIONS, meaning, table, words

ROOT = Path(__file__).resolve().parents[3]
ROWS = [(section, row) for section in SECTIONS for row in table()[section]]
# What fills placeholders whatever the row: why/case.py.
ALWAYS = {"run", "job_id", "array_id", "user", "account", "partition", "qos", "time_limit", "by", "what"}


def test_rows_have_names_of_their_own() -> None:
    assert len({row.id for _, row in ROWS}) == len(ROWS) > 130


@pytest.mark.parametrize(("section", "row"), ROWS, ids=[row.id for _, row in ROWS])
def test_a_row_can_be_said(section: str, row: Any) -> None:
    named = {name for text in (row.means, row.do) for _, name, _, _ in string.Formatter().parse(text) if name}
    assert named <= ALWAYS | set(row.matches.groupindex)
    assert set(row.look) <= set(evidence.LOOKS)
    assert row.means.endswith((".", "?")) and row.do.endswith((".", "N.", "–"))


def test_a_groups_value_has_words() -> None:
    found = meaning("waiting", "QOSMaxGRESPerUser")
    assert found is not None and found.said(dict.fromkeys(ALWAYS, "x"))[0].endswith("for one user: GPUs.")
    assert set(words()) >= {"cpu", "gres", "mem", "node"}


SAID = [
    ("waiting", "AssocGrpCpuLimit", "account-cores"),
    ("waiting", "AssocGrpCPUMinutesLimit", "account-core-minutes"),
    ("waiting", "AssocGrpCPURunMinutesLimit", "account-running-minutes"),
    ("waiting", "AssocGrpBillingMinutes", "account-minutes"),
    ("waiting", "AssociationJobLimit", "account-jobs"),
    ("waiting", "AssocMaxGRESPerJob", "account-too-large"),
    ("waiting", "QOSMaxSubmitJobPerUserLimit", "qos-submitted-jobs"),
    ("waiting", "QOSMinCpuNotSatisfied", "qos-too-small"),
    ("waiting", "QOSMaxCpuMinutesPerJobLimit", "qos-too-much-time"),
    ("waiting", "MaxMemoryPerAccount", "qos-per-account"),
    ("waiting", "QOSGrpMemoryRunMinutes", "qos-running-minutes"),
    ("waiting", "ReqNodeNotAvail, May be reserved for other job", "nodes-unavailable"),
    ("waiting", "ReqNodeNotAvail, Reserved for maintenance", "maintenance"),
    ("waiting", "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
     "nodes-unavailable"),
    ("waiting", "ReqNodeNotAvail, Reserved for other reservations", "nodes-unavailable"),
    ("waiting", "launch failed requeued held", "launch-failed-held"),
    ("waiting", "launch failure limit exceeded requeued held", "launch-limit-held"),
    ("waiting", "user env retrieval failed requeued held", "launch-failed-held"),
    ("waiting", "job requeued in held state", "requeued-in-hold"),
    ("waiting", "MaxCpuRunMinsPerUser", "qos-running-minutes-per-user"),
    ("waiting", "MaxGRESRunMinsPerAccount", "qos-running-minutes-per-account"),
    ("waiting", "ReservationInvalid", "reservation-invalid"),
    ("waiting", "Constraints", "constraints-not-now"),
    ("waiting", "BadConstraints", "bad-constraints"),
    ("waiting", "NvidiaImexChannels", "gpu-channels"),
    ("waiting", "JobHeldUser (canary mnist-1)", "held-for-canary"),
    ("waiting", "", "not-looked-at-yet"),
    ("waiting", "SomethingNewIn2030", "unknown-reason"),
    ("ended", "OUT_OF_MEMORY", "memory"),
    ("ended", "BOOT_FAIL", "boot-failed"),
    ("ended", "CANCELLED not started", "cancelled-before-start"),
    ("exit", "9:0", "exit-killed"),
    ("exit", "137:0", "exit-killed"),
    ("exit", "0:9", "exit-killed"),
    ("exit", "0:11", "exit-segfault"),
    ("exit", "121:0", "exit-srun"),
    ("exit", "0:53", "exit-never-started"),
    ("exit", "0:12", "exit-before-it-listened"),
    ("exit", "12:0", "exit-before-it-listened"),
    ("exit", "0:10", "exit-signal"),
    ("exit", "2:0", "exit-other"),
    ("log", "Failed: 3 different nodes in a row were bad, so the fault may be the job's: akya1: gpus: cuInit: "
     "CUDA_ERROR_NO_DEVICE; akya2: gpus: …; akya3: gpus: …", "bad-nodes-in-a-row"),
    ("log", "tensorflow.python.framework.errors_impl.ResourceExhaustedError: OOM when allocating tensor with shape[64]",
     "gpu-memory"),
    ("log", "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed.",
     "memory-in-log"),
    ("log", "srun: error: akya1: task 0: Out Of Memory", "memory-in-log"),
    ("log", "the code could not be unpacked on akya1 (/tmp/truba-7-code-1/p: No space left on device)",
     "node-disk-full"),
    ("log", "gönderilen kod okunamıyor: /runs/.code/code-1a.tar.gz: artık yok", "submitted-code-gone"),
    ("log", "slurmstepd: error: execve(): /venv/bin/python: No such file or directory", "program-missing"),
    ("log", "[2026-11-29T21:24:48.123] error: execve(): /venv/python: No such file or directory", "program-missing"),
    ("log", "slurmstepd-akya1: error: Failed to invoke task plugins: task_p_pre_launch error", "step-not-created"),
    ("log", "[2026-11-29T21:24:48.123] error: Failed to invoke task plugins: task_p_pre_launch error",
     "step-not-created"),
    ("log", "slurmstepd: error: *** JOB 7 ON akya1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
     "time-limit-in-log"),
    ("log", "RuntimeError: CUDA error: no kernel image is available for execution on the device", "gpu-too-old"),
    ("log", "RuntimeError: CUDA error: device-side assert triggered", "gpu-assert"),
    ("log", "RuntimeError: No CUDA GPUs are available", "gpu-missing"),
    ("log", "OSError: libcudnn.so.9: cannot open shared object file: No such file or directory", "gpu-library"),
    ("log", "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1, unhandled error", "nccl"),
    ("log", "ncclRemoteError: A call failed possibly due to a remote process exiting", "nccl-remote"),
    ("log", "RuntimeError: [gloo] Connection closed by peer [10.0.0.1]:1234", "nccl-remote"),
    ("log", "OSError: [Errno 5] Input/output error", "lustre"),
    ("log", "ImportError: /lib64/libm.so.6: version `GLIBC_2.38' not found (required by x.so)", "glibc"),
    ("log", "Lmod has detected the following error: The following module(s) are unknown", "module-command"),
    ("log", "FATAL:   could not open image /arf/x.sif: no such file or directory", "container"),
    ("record", "RUNNING", "pulled"),
    ("log", "environment.setup: exit status 127: conda activate x", "setup-line"),
    ("log", "environment.setup_before: çıkış kodu 1: module use: no", "setup-line"),
    ("log", "environment.modules: module load a/1 failed", "module-not-loaded"),
    ("log", "environment.conda: conda activate x failed", "conda"),
    ("log", "environment.apptainer: there is no command apptainer on akya1", "no-apptainer"),
    ("log", "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co", "hub-offline"),
    ("log", "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>", "no-internet"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "text", "row"), SAID, ids=[f"{row[0]} {row[1][:40]}" for row in SAID])
def test_what_slurm_and_frameworks_say_finds_its_row(section: str, text: str, row: str) -> None:
    found = meaning(section, text)
    assert found is not None and found.row.id == row


@pytest.mark.parametrize(
    "line",
    [
        "epoch 3/10  loss 0.2111  accuracy 0.9411",
        "run mnist-1, job 7, on akya1, data mnist",
        "this submission already belongs to job 3; there is nothing to do for job 4",
        "Downloading nothing: mnist.npz is there",
        "Using 2 GPUs, 20 cores, memory 40 GB",
    ],
)
def test_an_ordinary_line_finds_none(line: str) -> None:
    assert meaning("log", line) is None


@pytest.mark.parametrize("language", ["en", "tr"])
def test_what_a_run_says_itself_finds_its_row_in_both_languages(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUBA_LANG", language)
    monkeypatch.setattr(missing_gpus, "NVIDIA_DRIVER", tmp_path)
    with pytest.raises(Failed) as told:
        missing_gpus.tell_of_missing_gpus(2, "torch", "torch")
    found = meaning("log", str(told.value))
    assert found is not None and found.row.id == "gpu-missing"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "mnist-00000000")
    made.create()
    request = {"partition": "akya-cuda", "account": "ayse"}
    made.append_submission(Event(Kind.INTENT, token="t", job_name="mnist-00000000.t", request=request))
    made.append_submission(Event(Kind.SUBMITTED, token="t", job_id="7"))
    return made


def log(run: RunDir, text: str) -> None:
    (run.logs / "7_0_log.out").write_text(text)


def failed(run: RunDir, kind: str, message: str, **place: object) -> None:
    error = {"type": kind, "message": message, **place}
    run.write_progress(progress_from({"job_id": "7", "state": "failed", "error": error, "started": 0, "updated": 9}))


def ended(run: RunDir, state: str = "FAILED", exit_code: str = "1:0", **fields: str) -> list[Finding]:
    """What is told of the run when its job has ended so; Slurm is not there to be asked for more."""
    row = {
        "JobID": "7",
        "State": state,
        "ExitCode": exit_code,
        "Start": "2026-01-01T00:00:00",
        "NodeList": "",
        **fields,
    }
    job = Job("7", state.split()[0], "akya-cuda", exit_code=exit_code, time_limit="01:00:00")
    case = Case(run, state_of(run.record(), {"7": job}), "7", run.submissions()[0], starts=[Start(row)])
    return diagnose(case, look_closer=False)


def waiting(run: RunDir, reason: str, starts: int = 0, state: str = "PENDING", **queued: str) -> Case:
    job = Job("7", state, "akya-cuda", reason)
    earlier = [Start({"JobID": "7", "State": "REQUEUED", "ExitCode": "0:0"})] * starts
    told = {"reason": reason, "account": "ayse", **queued}
    return Case(run, state_of(run.record(), {"7": job}), "7", run.submissions()[0], told, earlier)


def test_the_exception_on_record_counts_before_the_log(run: RunDir) -> None:
    log(run, "Connection refused\nTraceback\nValueError: no\n")
    failed(run, "ValueError", "no", file="/p/jobs/own.py", line=3, code="raise ValueError")
    (found,) = ended(run)
    assert found.reason == "raised"
    told = [(one.source, one.says) for one in found.evidence]
    assert told == [("mnist-00000000", "ValueError: no"), ("/p/jobs/own.py:3", "raise ValueError")]


def test_a_line_of_the_set_up_is_the_reason_and_not_what_it_printed(run: RunDir) -> None:
    log(run, "script: line 9: conda: command not found\nenvironment.setup: exit status 127: conda activate x\n")
    (found,) = ended(run, exit_code="94:0")
    assert found.reason == "setup-line" and '"conda activate x" of environment.setup failed' in found.means
    assert "environment=conda" in found.do and found.evidence[0].source == "7_0_log.out:2"


def test_an_exception_that_is_in_the_table_is_told_with_the_users_line(run: RunDir) -> None:
    failed(run, "OutOfMemoryError", "CUDA out of memory. Tried…", file="/p/own.py", line=8, code="learn.fit(1)")
    (found,) = ended(run)
    assert found.reason == "gpu-memory" and found.evidence[1].says == "learn.fit(1)"


def test_what_is_only_a_consequence_gives_way_to_the_cause_in_the_log(run: RunDir) -> None:
    log(run, "torch.OutOfMemoryError: CUDA out of memory\nncclRemoteError: a remote process exited\n")
    failed(run, "DistBackendError", "ncclRemoteError: a remote process exited")
    assert [found.reason for found in ended(run)] == ["gpu-memory", "nccl-remote"]
    log(run, "ncclRemoteError: a remote process exited\n")
    assert [found.reason for found in ended(run)] == ["nccl-remote"]


@pytest.mark.parametrize("language", ["en", "tr"])
def test_only_the_last_start_counts(run: RunDir, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUBA_LANG", language)
    first, last = (
        # What the worker says when a run begins.
        _("run {run}, job {job_id}, on {node}, data {data}", run="mnist-1", job_id="7", node=node, data="d")
        for node in ("a1", "a2")
    )
    log(run, f"{first}\nDisk quota exceeded\n{last}\nbye\n")
    (found,) = ended(run, exit_code="3:0")
    assert found.reason == "exit-other"
    assert [one.says for one in found.evidence][1:] == [last, "bye"]


def test_of_a_run_that_was_given_up_the_earlier_starts_count_too(run: RunDir) -> None:
    log(run, "run mnist-1, job 7, on a1, data d\nIllegal instruction\nrun mnist-1, job 7, on a2, data d\n")
    failed(
        run, "Failed", "3 starts from epoch 1, step 1 made no progress, so the run is not started again.", gave_up=True
    )
    assert [found.reason for found in ended(run)] == ["gave-up", "illegal-instruction-in-log"]


# What TensorFlow 2.17 to 2.21 and torch print at every start where there is no GPU.
WITHOUT_GPU = """\
2026-01-01 00:00:00.1: E external/local_xla/cuda_driver.cc:152] failed call to cuInit: INTERNAL: \
CUDA error: Failed call to cuInit: UNKNOWN ERROR (303)
E0000 00:00:1796025548.538328    4378 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_NO_DEVICE: \
no CUDA-capable device is detected
/venv/torch/cuda/__init__.py:228: UserWarning: CUDA initialization: Found no NVIDIA driver on your system. Please check
"""


def test_what_every_start_without_a_gpu_prints_is_no_reason(run: RunDir) -> None:
    starts = "".join(f"run mnist-1, job 7, on a{node}, data d\n{WITHOUT_GPU}" for node in range(3))
    log(run, starts)
    failed(
        run, "Failed", "3 starts from epoch 1, step 1 made no progress, so the run is not started again.", gave_up=True
    )
    assert [found.reason for found in ended(run)] == ["gave-up"]
    log(run, f"Illegal instruction\n{starts}")
    assert [found.reason for found in ended(run)] == ["gave-up", "illegal-instruction-in-log"]


@pytest.mark.parametrize("line", WITHOUT_GPU.splitlines())
def test_no_run_that_wants_no_gpu_has_failed_for_want_of_one(run: RunDir, line: str) -> None:
    log(run, f"{line}\n")
    assert [found.reason for found in ended(run)] != ["exit-other"]
    request = {"partition": "barbun", "account": "ayse", "gpus": 0}
    run.submissions_file.unlink()
    run.append_submission(Event(Kind.INTENT, token="t", job_name="mnist-00000000.t", request=request))
    run.append_submission(Event(Kind.SUBMITTED, token="t", job_id="7"))
    assert [found.reason for found in ended(run)] == ["exit-other"]


def test_warnings_of_tensorflow_are_no_reason_where_there_is_another(run: RunDir) -> None:
    chatter = "2026-01-01 00:00:00.000001: E external/local_xla/cuda_driver.cc:152] failed call: CUDA_ERROR_NO_DEVICE\n"
    log(run, chatter + "OSError: [Errno 28] No space left on device\n")
    assert [found.reason for found in ended(run)] == ["disk-full"]
    log(run, chatter)
    assert [found.reason for found in ended(run)] == ["gpu-missing"]


def test_slurms_own_word_counts_before_the_log(run: RunDir) -> None:
    log(run, "torch.OutOfMemoryError: CUDA out of memory\n")
    assert [found.reason for found in ended(run, "OUT_OF_MEMORY", "0:125")] == ["memory"]
    assert [found.reason for found in ended(run, "NODE_FAIL", "0:0")] == ["node-failed"]
    log(run, "Watchdog caught collective operation timeout\n")
    assert [found.reason for found in ended(run, "TIMEOUT", "0:0")] == ["time-limit", "nccl-timeout"]
    assert "(01:00:00)" in ended(run, "TIMEOUT", "0:0")[0].means


def test_who_cancelled_it(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    assert ended(run, "CANCELLED by 0")[0].reason == "cancelled-by-you"
    other = ended(run, "CANCELLED by 54321")[0]
    assert other.reason == "cancelled-by-other" and "by uid 54321, not" in other.means
    assert ended(run, "CANCELLED by 54321", Start="None")[0].reason == "cancelled-before-start"
    assert ended(run, "CANCELLED")[0].reason == "cancelled"


def test_a_run_that_has_its_result_is_finished_whatever_became_of_its_job(run: RunDir) -> None:
    run.write_result({"metrics": {}})
    assert [found.reason for found in ended(run, "NODE_FAIL")] == ["finished"]


def test_what_waits(run: RunDir) -> None:
    assert diagnose(waiting(run, "Priority"), look_closer=False)[0].reason == "priority"
    assert diagnose(waiting(run, "BeginTime"), look_closer=False)[0].reason == "begin-time"
    assert diagnose(waiting(run, "BeginTime", starts=2), look_closer=False)[0].reason == "begin-after-requeue"


def test_a_job_in_hold_is_explained_by_the_reason_and_not_by_its_state_alone(run: RunDir) -> None:
    limit = "launch failure limit exceeded requeued held"
    for state in ("PENDING", "REQUEUE_HOLD"):
        (found,) = diagnose(waiting(run, limit, state=state), look_closer=False)
        assert found.reason == "launch-limit-held" and "scontrol release" not in found.do
        (own,) = diagnose(waiting(run, "job requeued in held state", state=state), look_closer=False)
        assert own.reason == "requeued-in-hold" and "scontrol release 7" in own.do
    assert diagnose(waiting(run, "None", state="REQUEUE_HOLD"), look_closer=False)[0].reason == "requeued-and-held"


def test_the_expected_start_is_told_unless_the_job_is_held(run: RunDir) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 7205))
    (group,) = groups([waiting(run, "Resources", start=soon, priority="5")])
    assert group.start.startswith(f"{soon.replace('T', ' ')}, in 2 h 0 min")
    assert group.as_json()[0]["estimated_start"] == soon
    (held,) = groups([waiting(run, "JobHeldUser", start=soon, priority="0")])
    assert held.start == "" and held.as_json()[0]["estimated_start"] is None


def test_runs_are_grouped_by_reason_the_largest_group_first(tmp_path: Path) -> None:
    cases = []
    for number, reason in enumerate(["Priority", "AssocGrpCpuLimit", "AssocGrpCpuLimit"]):
        one = RunDir(tmp_path / f"run-{number}")
        one.create()
        one.append_submission(Event(Kind.INTENT, token="t", request={}))
        one.append_submission(Event(Kind.SUBMITTED, token="t", job_id="7"))
        cases.append(waiting(one, reason))
    found = groups(cases)
    assert [(len(group.cases), group.findings[0].reason) for group in found] == [(2, "account-cores"), (1, "priority")]


def why(folder: Path, *arguments: str, **variables: str) -> CompletedProcess[str]:
    environment = {**os.environ, "PATH": "/nonexistent", **variables}
    return truba("why", *arguments, "--runs", str(folder), cwd=folder, environment=environment)


ORFOZ = "Orfoz kuyruguna gonderilen islerde node basina 56/112 cekirdek talep ediniz."


@pytest.mark.parametrize(
    ("language", "row", "told", "wrong"),
    [
        ("en", {}, "must ask for 56/112 cores on each node", False),
        ("tr", {}, "düğüm başına 56/112 çekirdek", False),
        # A row of a damaged config is none.
        ("en", {"matches": "("}, "Slurm refused the job at submission", True),
        ("en", {"means": "{nothing}"}, "Slurm refused the job at submission", True),
    ],
)
def test_what_a_sites_filter_refused_is_explained_by_the_runs_own_config(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, language: str, row: dict[str, str], told: str, wrong: bool
) -> None:
    monkeypatch.setenv("TRUBA_LANG", language)
    rows = yaml.safe_load((shipped("conf") / "cluster" / "truba.yaml").read_text())["refusals"]
    config = {"cluster": {"refusals": [{**one, **row} for one in rows]}}
    run.config_file.write_text(yaml.safe_dump(config))
    run.append_submission(Event(Kind.INTENT, token="t"))
    run.append_submission(Event(Kind.REFUSED, token="t", message=ORFOZ))
    (finding,) = diagnose(cases_of([run], {})[0])
    assert (finding.reason == "refused") == wrong and told in finding.means
    assert finding.evidence[0].says == ORFOZ


def test_local_and_damaged_runs_on_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name, events in {
        "killed": [
            Event(Kind.LOCAL, job_id="local-1"),
            Event(Kind.KILLED, job_id="local-1", signal="SIGKILL"),
        ],
        "refused": [
            Event(Kind.INTENT, token="t"),
            Event(Kind.REFUSED, token="t", message="Invalid account"),
        ],
        "finished": [Event(Kind.LOCAL, job_id="local-1")],
        "damaged": [Event(Kind.LOCAL, job_id="local-1")],
    }.items():
        one = RunDir(folder / name)
        one.create()
        for event in events:
            one.append_submission(event)
    RunDir(folder / "finished").write_result({"metrics": {}})
    (folder / "damaged" / "progress.json").write_text('{"job_id": "local-1", "state": "failed", "error": 3}')
    asked = why(folder, "killed", "refused", "finished", "damaged", "--json")
    assert asked.returncode == 0, asked.stderr
    told = {row["run"]: row["findings"][0] for row in json.loads(asked.stdout)}
    assert {name: finding["reason"] for name, finding in told.items()} == {
        name: name for name in ("killed", "refused", "finished", "damaged")
    }
    assert told["refused"]["evidence"][0]["says"] == "Invalid account"
    assert "durumda" not in why(folder, "killed").stdout
    turkish = why(folder, "killed", LANG="tr_TR.UTF-8", TRUBA_LANG="")
    assert "Yerel eğitimin süreci öldürüldü." in turkish.stdout and "SIGKILL" in turkish.stdout
    nobody = why(folder, "nobody")
    assert nobody.returncode == 2 and "no run starts with it" in nobody.stderr
