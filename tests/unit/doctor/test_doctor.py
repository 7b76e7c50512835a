"""`truba doctor`: what each check finds, that none breaks another, and that none is waited for too long."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from in_process import truba

from truba_runner.config.schema import Environment, Experiment
from truba_runner.doctor import Check, Finding, Patient, examine, files, nodes, programs, slurm, where
from truba_runner.environment import probe, report
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.ledger import record_bad
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import client
from truba_runner.slurm.client import SlurmError
from truba_runner.storage import quota

ROOT = Path(__file__).resolve().parents[3]
Compose = Callable[..., Experiment]


@pytest.fixture
def patient(experiment: Compose, tmp_path: Path) -> Patient:
    """Of TRUBA's own config, with its folders in a temporary one."""
    own = [
        f"cluster.scratch={tmp_path}",
        f"cluster.runs_folder={tmp_path}/runs",
        f"cluster.data_folder={tmp_path}/data",
    ]
    return Patient(experiment(*own, "resources.account=ayse"), tmp_path)


class FakeSlurm:
    """Answers in place of Slurm's commands, by how the command line begins; the real ones are asked in tests/slurm."""

    def __init__(self, answers: dict[str, str | SlurmError]) -> None:
        self.answers = answers

    def __call__(self, argv: Sequence[str], **_: object) -> str:
        line = " ".join(argv)
        found = next((answer for start, answer in self.answers.items() if line.startswith(start)), None)
        if found is None:
            raise SlurmError(argv[0], f"nothing is known of {line}", transient=False)
        if isinstance(found, SlurmError):
            raise found
        return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str | SlurmError]], None]:
    def answer(answers: dict[str, str | SlurmError]) -> None:
        monkeypatch.setattr(client, "run", FakeSlurm(answers))
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr("getpass.getuser", lambda: "ayse")

    return answer


def levels(found: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(one.level, one.says) for one in found]


def test_a_check_that_raises_or_hangs_breaks_no_other(patient: Patient) -> None:
    let_go = threading.Event()

    def raises(_: Patient) -> Iterator[Finding]:
        yield Finding("ok", "first", "said before")
        raise KeyError("oops")

    def hangs(_: Patient) -> Iterator[Finding]:
        let_go.wait(240)
        yield Finding("ok", "second", "too late")

    def works(_: Patient) -> Iterator[Finding]:
        yield Finding("ok", "third", "fine")

    checks: list[tuple[str, Check]] = [("first", raises), ("second", hangs), ("third", works)]
    found = list(examine(checks, patient, patience_seconds=3))
    let_go.set()
    assert [(one.subject, one.level) for one in found] == [
        ("first", "ok"), ("first", "warning"), ("second", "warning"), ("third", "ok"),
    ]  # fmt: skip
    assert "KeyError('oops')" in found[1].says and "no answer in time" in found[2].says


def test_a_controller_that_does_not_answer_is_a_fault(patient: Patient, fake: Callable[..., None]) -> None:
    fake({"scontrol ping": "Slurmctld(primary) at ui is UP\n", "sacct": ""})
    ((level, says),) = levels(slurm.controller(patient))
    assert level == "ok" and says.startswith("Slurmctld(primary) at ui is UP")
    fake({"scontrol ping": "Slurmctld(primary) at ui is DOWN\n"})
    assert [level for level, _ in levels(slurm.controller(patient))] == ["fault"]
    fake({"scontrol ping": SlurmError("scontrol", "Socket timed out on send/recv operation", transient=True)})
    ((level, says),) = levels(slurm.controller(patient))
    assert level == "fault" and "Socket timed out" in says


def test_what_scontrol_prints_of_a_controller_that_is_down_is_told(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = "Slurmctld(primary) at ui is DOWN"
    for name in slurm._COMMANDS:
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{down}'\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert levels(slurm.controller(patient)) == [("fault", f"scontrol: {down}")]


def test_a_site_without_sacct_is_fit_for_runs(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = "Slurmctld(primary) at ui is UP"
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sinfo"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{up}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [level for level, _ in levels(slurm.controller(patient))] == ["ok"]
    assert levels(slurm.accounting(patient)) == [("warning", "there is no command sacct here")]


ASSOCIATION = "Account={0} UserName={1} Partition= GrpJobs=N(4) GrpWall=N(0.00) GrpTRES={2} GrpTRESMins={3} MaxWallPJ="


def assoc(cores: str = "cpu=N(0)", minutes: str = "cpu=N(0)") -> dict[str, str | SlurmError]:
    own, other = (
        ASSOCIATION.format("ayse", "", cores, minutes),
        ASSOCIATION.format("mehmet", "", "cpu=4(0)", "cpu=N(0)"),
    )
    return {
        "scontrol --oneliner show assoc_mgr": f"Association Records\n{own}\n{other}\n",
        "sacctmgr": "ayse|ayse\nproj1|ayse\n",
    }


def test_an_account_that_is_not_the_users_is_a_fault(patient: Patient, fake: Callable[..., None]) -> None:
    fake(assoc())
    assert levels(slurm.account(patient)) == [("ok", "your accounts: ayse, proj1")]
    theirs = replace(patient.experiment, resources=replace(patient.experiment.resources, account="ali"))
    ((level, says),) = levels(slurm.account(Patient(theirs, patient.home)))
    assert (level, says) == ("fault", "you do not belong to it; your accounts: ayse, proj1")
    nobodys = replace(patient.experiment, resources=replace(patient.experiment.resources, account=""))
    (finding,) = slurm.account(Patient(nobodys, patient.home))
    assert (finding.level, finding.subject, finding.says) == ("fault", "account", "your accounts: ayse, proj1")


@pytest.mark.parametrize(
    ("cores", "minutes", "level", "says"),
    [
        ("cpu=160(160)", "cpu=N(0)", "ok", "ayse: GrpTRES cpu=160, 160 in use"),
        ("cpu=N(0)", "cpu=1000(100)", "ok", "ayse: GrpTRESMins cpu=1000, 100 in use"),
        ("cpu=N(0)", "cpu=1000(950)", "warning", "ayse: GrpTRESMins cpu=1000, 950 in use"),
        ("cpu=N(0)", "cpu=1000(1000)", "fault", "ayse: GrpTRESMins cpu=1000, 1000 in use"),
    ],
)
def test_what_is_used_up_for_good_is_a_fault_and_what_comes_back_is_not(
    patient: Patient, fake: Callable[..., None], cores: str, minutes: str, level: str, says: str
) -> None:
    fake(assoc(cores, minutes))
    assert (level, says) in levels(slurm.account(patient))


def test_conf_that_says_more_cores_than_slurm_is_told(patient: Patient, fake: Callable[..., None]) -> None:
    fake(assoc(cores="cpu=40(0)"))
    told = dict(levels(slurm.account(patient)))
    assert "account_cores: 160, Slurm allows 40 cores at once" in told["note"]


def partition(name: str, **changed: str) -> str:
    fields = {"AllowAccounts": "ALL", "MaxTime": "3-00:00:00", "State": "UP"} | changed
    return f"PartitionName={name} " + " ".join(f"{key}={value}" for key, value in fields.items()) + "\n"


def hardware(name: str, nodes: int, cores: int, memory_mb: int, gres: str) -> str:
    return "\x1f".join((name, str(nodes), str(cores), str(memory_mb), gres)) + "\n"


AKYA = hardware("akya-cuda", 24, 40, 386_000, "gpu:v100:4(S:0-1)")


def only(patient: Patient, *names: str) -> Patient:
    """The patient whose conf/cluster has these partitions alone."""
    cluster = patient.experiment.cluster
    kept = replace(cluster, partitions={name: cluster.partitions[name] for name in names})
    return Patient(replace(patient.experiment, cluster=kept), patient.home)


@pytest.mark.parametrize(
    ("live", "nodes", "expected"),
    [
        (partition("akya-cuda"), AKYA, [("ok", "you may use: akya-cuda")]),
        (partition("akya-cuda", MaxTime="1-00:00:00"), AKYA, [("warning", "max_time: 3-00:00:00, Slurm: 1-00:00:00")]),
        (partition("akya-cuda"), hardware("akya-cuda", 9, 40, 386_000, "gpu:4"), [("warning", "nodes: 24, Slurm: 9")]),
        (partition("akya-cuda"), hardware("akya-cuda", 24, 40, 386_000, "gpu:v100:8"),
         [("warning", "gpus_per_node: 4, Slurm: 8")]),
        (partition("akya-cuda"), hardware("akya-cuda", 24, 64, 257_000, "gpu:v100:4"),
         [("warning", "cores_per_node: 40, Slurm: 64"), ("warning", "memory_gb: 384, Slurm: 250.977")]),
        (partition("akya-cuda", State="DRAIN"), AKYA, [("fault", "State=DRAIN"), ("fault", "you may use: –")]),
        (partition("akya-cuda", AllowAccounts="proj1,root"), AKYA, [("fault", "AllowAccounts=proj1,root")]),
        (partition("akya-cuda", DenyAccounts="ayse"), AKYA, [("fault", "the account ayse may not use it")]),
        (partition("new"), "", [("fault", "it is in conf/cluster/truba.yaml, but not in Slurm"),
                                ("ok", "Slurm has partitions that are missing in conf/cluster/truba.yaml: new")]),
    ],
)  # fmt: skip
def test_conf_against_the_live_partitions(
    patient: Patient, fake: Callable[..., None], live: str, nodes: str, expected: list[tuple[str, str]]
) -> None:
    fake({"scontrol show partition": live, "sinfo": nodes})
    found = levels(slurm.partitions(only(patient, "akya-cuda")))
    for level, words in expected:
        assert any(one == level and words in says for one, says in found), found
    if expected[0][0] == "ok":
        assert all(level == "ok" for level, _ in found)


def test_a_partition_that_is_not_the_chosen_one_may_be_closed(patient: Patient, fake: Callable[..., None]) -> None:
    p100 = hardware("barbun-cuda", 24, 40, 386_000, "gpu:p100:2")
    fake({
        "scontrol show partition": partition("akya-cuda") + partition("barbun-cuda", State="DOWN"),
        "sinfo": AKYA + p100,
    })  # fmt: skip
    found = levels(slurm.partitions(only(patient, "akya-cuda", "barbun-cuda")))
    assert ("note", "State=DOWN") in found and ("ok", "you may use: akya-cuda") in found
    assert all(level != "fault" for level, _ in found)


def test_scratch_that_is_not_there_and_folders_that_cannot_be_written(patient: Patient, tmp_path: Path) -> None:
    assert [level for level, _ in levels(files.folders(patient))] == ["ok", "ok", "ok"]
    assert not (tmp_path / "runs").exists(), "to look leaves no trace"
    cluster = replace(patient.experiment.cluster, scratch=str(tmp_path / "none"))
    ((level, says),) = levels(files.folders(Patient(replace(patient.experiment, cluster=cluster), tmp_path)))
    assert level == "fault" and says == f"{tmp_path}/none does not exist"
    closed = replace(patient.experiment.cluster, runs_folder="/proc/1/runs")
    found = levels(files.folders(Patient(replace(patient.experiment, cluster=closed), tmp_path)))
    assert [level for level, _ in found] == ["ok", "fault", "ok"]


def test_old_runs_are_told_of_before_scratch_is_purged(patient: Patient, tmp_path: Path) -> None:
    assert levels(files.purge(patient))[0][0] == "ok"
    for name, days in {"young-1": 10, "old-1": 25, "older-1": 40}.items():
        run = RunDir(tmp_path / "runs" / name)
        run.create()
        run.append_submission(Event(Kind.LOCAL, job_id="local-1"))
        run.write_config({"cluster": {"scratch": str(tmp_path), "scratch_days": 30}})
        for file in (run.config_file, run.submissions_file):
            os.utime(file, (time.time(), time.time() - days * 86_400))
    ((level, says),) = levels(files.purge(patient))
    assert (
        level == "warning" and says.startswith("files of 2 runs") and "older-1, old-1" in says and "young" not in says
    )


# Lustre's layout, from its manual: path, kilobytes, quota, limit, grace, files, quota, limit, grace.
QUOTA = """     /arf/scratch 1979000000* 1900000000 2000000000 6d23h59m42s
                  496000       0  500000       -
"""


def test_lustres_quota() -> None:
    space, count = quota.quota_in(QUOTA, "lfs quota")
    assert (space.used, space.limit) == (1979000000 * 1024, 1900000000 * 1024)
    assert (count.what, count.used, count.limit) == ("files", 496000, 500000)
    assert quota.quota_in("     /arf 12 0 0 - 5 0 0 -\n", "lfs quota") == [], "no limit is set"
    assert quota.quota_in("some error", "lfs quota") == []


@pytest.mark.parametrize(("share", "level"), [(0.5, "ok"), (0.95, "warning"), (0.995, "fault")])
def test_room(patient: Patient, monkeypatch: pytest.MonkeyPatch, share: float, level: str) -> None:
    monkeypatch.setattr(
        quota, "rooms", lambda folder: [quota.Room("lfs quota", "files", int(500_000 * share), 500_000)]
    )
    ((told, says),) = levels(files.room(patient))
    assert told == level and "of 500000 files" in says


def chosen(patient: Patient, **settings: object) -> Patient:
    environment = replace(Environment(name="own", kind="venv"), **settings)  # type: ignore[arg-type]
    return Patient(replace(patient.experiment, environment=environment), patient.home)


def test_the_environment_is_entered(patient: Patient, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    packages = {"tensorflow": "2.18.0", "keras": "3.6.0"}
    answer = {"python": "3.10.1", "executable": "/x", "packages": packages, "cuda": {}}

    def found(**changed: object) -> list[tuple[str, str]]:
        python.write_text(f"#!/bin/sh\necho motd\necho 'TRUBA-ENVIRONMENT {json.dumps({**answer, **changed})}'\n")
        python.chmod(0o755)
        # Each time another environment, or the first answer is kept.
        return levels(programs.environment(chosen(patient, venv=str(tmp_path / "venv"), setup=[f": {changed}"])))

    ok, other = found()
    assert ok[0] == "ok" and "Python 3.10.1, tensorflow 2.18.0, keras 3.6.0" in ok[1] and other[0] == "note"
    ((level, says),) = found(packages={"keras": "3.6.0"})
    assert level == "fault" and "has no tensorflow" in says
    ((level, says),) = levels(programs.environment(chosen(patient, venv="/nonexistent")))
    assert level == "fault" and "there is no /nonexistent/bin/python" in says


def test_an_environment_that_only_jobs_can_enter_is_no_fault(patient: Patient, tmp_path: Path) -> None:
    image = tmp_path / "image.sif"
    image.touch()
    asked = chosen(patient, kind="apptainer", image=str(image), apptainer="/nonexistent/apptainer")
    assert [level for level, _ in levels(programs.environment(asked))] == ["note"]


def doctor(tmp_path: Path, *arguments: str, **variables: str) -> CompletedProcess[str]:
    home = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "TRUBA_SCRATCH": str(tmp_path)}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **home, **variables}
    return truba("doctor", *arguments, cwd=tmp_path, environment=environment)


def test_on_a_laptop_without_slurm(tmp_path: Path) -> None:
    done = doctor(tmp_path, "cluster=local")
    assert "cluster=local has no Slurm: runs train on this machine" in done.stdout
    assert "partition" not in done.stdout and "FAULT" not in done.stdout and done.returncode == 0
    assert list(tmp_path.iterdir()) == []
    turkish = doctor(tmp_path, "cluster=local", TRUBA_LANG="tr")
    assert "eğitimleri engelleyen bir sorun bulunmadı" in turkish.stdout


def test_a_login_nodes_cluster_without_slurms_commands_is_a_fault(tmp_path: Path) -> None:
    done = doctor(tmp_path, "cluster=truba", "--json", PATH="/nonexistent")
    assert done.returncode == 1, done.stderr
    found = {one["subject"]: one for one in json.loads(done.stdout) if one["level"] == "fault"}
    assert "sbatch" in found["Slurm"]["says"] and found["Slurm"]["remedy"].startswith("Work on a login node")


def test_a_config_that_cannot_be_read_is_a_fault_itself(tmp_path: Path) -> None:
    done = doctor(tmp_path, "cluster=nowhere")
    assert (
        done.returncode == 1 and "FAULT" in done.stdout and "nowhere" in done.stdout and "Traceback" not in done.stderr
    )


# -- libraries that two packages write ---------------------------------------------------------------------------


def install(folder: Path, name: str, version: str, needs: Sequence[str] = (), **files: bytes) -> None:
    """A package with its metadata, as pip leaves it; a file that another one wrote is written over."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    record = []
    for library, content in files.items():
        file = Path("nvidia", library, "lib", f"lib{library}.so.2")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record.append(f"{file},sha256={digest},{len(content)}\n")
    (about / "RECORD").write_text("".join(record))


@pytest.mark.parametrize("older", [b"cuda 12", b"cuda 12, of another size"], ids=["same size", "other size"])
def test_which_of_two_packages_a_framework_loads_is_read_from_the_file_that_both_write(
    older: bytes, patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    install(site, "tensorflow", "2.21.0", ['nvidia-nccl-cu12<3.0 ; extra == "and-cuda"', "numpy"])
    install(site, "torch", "2.14.1", ["nvidia-nccl-cu13==2.30.7"])
    install(site, "nvidia-nccl-cu12", "2.27.7", nccl=older)
    install(site, "nvidia-cudnn-cu13", "9.24.0", cudnn=b"alone")
    monkeypatch.setattr("sys.path", [str(site)])
    assert report.shared("nccl") == report.shared("cudnn") == {}
    install(site, "nvidia-nccl-cu13", "2.30.7", nccl=b"cuda 13")
    found = report.shared("nccl")
    assert found["loaded"] == {"tensorflow": "nvidia-nccl-cu13", "torch": "nvidia-nccl-cu13"}

    def told() -> list[Finding]:
        monkeypatch.setattr(probe, "found_here", lambda _: {**HELD, "shared": {"nccl": found}})
        return [one for one in programs.environment(patient) if "nccl" in one.subject]

    (finding,) = told()
    assert finding.level == "warning" and "Give each framework its own environment" in finding.remedy
    assert finding.says == (
        "nvidia-nccl-cu12 2.27.7 and nvidia-nccl-cu13 2.30.7; tensorflow loads nvidia-nccl-cu13 2.30.7; "
        "torch loads nvidia-nccl-cu13 2.30.7; tensorflow requires nvidia-nccl-cu12"
    )
    (site / "torch-2.14.1.dist-info" / "METADATA").unlink()
    (site / "nvidia/nccl/lib/libnccl.so.2").write_bytes(older)
    found = report.shared("nccl")
    assert found["loaded"] == {"tensorflow": "nvidia-nccl-cu12"}
    assert told()[0].level == "note"


HELD = {"python": "3.11.2", "executable": "/usr/bin/python3", "packages": {}, "cuda": {}}


# -- where experiments can run -----------------------------------------------------------------------------------


def test_a_table_says_which_experiment_can_run_on_which_partition(
    patient: Patient, experiment: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's default wheel has code for newer GPUs alone, and TensorFlow's for all."""
    held = {
        **HELD,
        "packages": {"tensorflow": "2.21.0", "keras": "3.15.1", "torch": "2.14.1", "fastai": "2.8.12"},
        "cuda": {"tensorflow": "12.5.1", "torch": "13.0"},
        "architectures": {
            "tensorflow": ["sm_60", "sm_70", "sm_80", "compute_90"],
            "torch": ["sm_75", "sm_80", "sm_90"],
        },
    }
    monkeypatch.setattr(probe, "found_here", lambda _: held)
    monkeypatch.setattr(where.Sizes, "of", lambda *_: None)
    account = "resources.account=ayse"
    others = {"mnist": experiment(account), "pets": experiment(account, name="pets")}
    table, *reasons = where.table(replace(patient, others=others))
    cells = {row[0]: tuple(row[1:]) for row in table.table}
    assert cells[""] == ("mnist", "pets")
    for name in ("palamut-cuda", "kolyoz-cuda", "orfoz", "debug (orfoz)"):
        assert cells[name] == ("yes", "yes"), name
    for name, number in {"barbun-cuda": "1", "akya-cuda": "2", "debug (akya-cuda)": "3"}.items():
        assert cells[name] == ("yes", number), cells
    assert reasons[0].subject == "(1)" and "the P100 of barbun-cuda is sm_60" in reasons[0].says
    assert all(one.level == "note" for one in reasons), "mnist, the chosen one, can run"
    chosen = replace(patient, experiment=others["pets"], others=others)
    assert [one.level for one in where.table(chosen)][-1] == "fault"


def test_a_machine_without_slurm_has_no_such_table(experiment: Compose) -> None:
    assert list(where.table(Patient(experiment(cluster="local")))) == []


def test_the_doctor_counts_bad_nodes(patient: Patient, fake: Callable[..., None], tmp_path: Path) -> None:
    assert levels(nodes.bad(patient)) == [("ok", "no node is known as bad")]  # Slurm is not asked.
    (tmp_path / "runs").mkdir()
    rows = [*(("akya", "akya-cuda", number) for number in range(1, 5)), *(("smp", "smp", number) for number in (1, 2))]
    form = "\x1f".join(("{name}{number}", "{partition}", "feature"))
    sinfo = [form.format(name=name, partition=partition, number=number) for name, partition, number in rows]
    fake({"sinfo --all --noheader --Node": "\n".join(sinfo)})
    for name in ("akya1", "akya2", "smp1"):
        record_bad(tmp_path / "runs", "", Fault(name, "gpus", "none", time.time()))
    assert levels(nodes.bad(patient)) == [("note", "3 nodes are left out by jobs: akya1, akya2, smp1")]
    record_bad(tmp_path / "runs", "", Fault("akya3", "gpus", "none", time.time()))
    assert levels(nodes.bad(patient))[1:] == [("warning", "3 of the 4 nodes of akya-cuda are known as bad")]


def test_a_shared_list_that_cannot_be_used_is_a_warning(patient: Patient, tmp_path: Path) -> None:
    patient.experiment.cluster.bad_nodes = str(tmp_path / "shared")
    assert levels(nodes.bad(patient))[0][0] == "warning"
    (tmp_path / "shared").touch()
    assert [level for level, _says in levels(nodes.bad(patient))] == ["ok"]
