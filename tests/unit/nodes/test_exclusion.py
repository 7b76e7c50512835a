"""Which bad nodes a job leaves out, and what a submission costs where there are none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from truba_runner.config.identity import run_id
from truba_runner.config.schema import Experiment
from truba_runner.environment import probe, probe_job
from truba_runner.launch import prepare
from truba_runner.nodes import exclusion
from truba_runner.nodes.exclusion import Exclusion, chosen
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.ledger import BadNode, record_bad
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import client, commands, queries
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.queries import Node
from truba_runner.slurm.request import Request
from truba_runner.submission import messages
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission

ASKS = Request("akya-cuda", "ayse", 1, 1, 10, 1, None, 60, 90, "")
NODES = [
    *(Node(f"akya{number}", "akya-cuda", ["akya-cuda", "V100"]) for number in (1, 2, 3)),
    Node("akya4", "akya-cuda", ["akya-cuda", "V100", "big"]),
    *(Node(f"akya{number}", "debug", ["akya-cuda"]) for number in (1, 2, 3, 4)),
    Node("barbun1", "debug", ["barbun"]),
]


def bad(*names: str) -> list[BadNode]:
    """Return bad nodes, the oldest first."""
    return [
        BadNode(name, (Fault(name, "gpus", f"no GPU of {name}", 1e9 + count),), ()) for count, name in enumerate(names)
    ]


def choose(listed: Sequence[BadNode], /, **asks: object) -> tuple[str, int]:
    found = chosen(replace(ASKS, **asks), listed, NODES)  # type: ignore[arg-type]
    return found.exclude, len(found.warnings)


@pytest.mark.parametrize(
    "names, asks, exclude, warnings",
    [
        (["akya2"], {}, "akya2", 0),
        (["akya3", "akya1"], {"exclude": "akya[2]"}, "akya[2],akya1,akya3", 0),
        # A name that Slurm does not know would refuse the job; one of another partition changes nothing.
        (["akya9", "akya2", "barbun1"], {}, "akya2", 0),
        (["akya9"], {"exclude": "akya3"}, "akya3", 0),
        (["akya2"], {"partition": "gone"}, "", 0),
        # The oldest come off until enough are left.
        (["akya2", "akya1", "akya4", "akya3"], {}, "akya1,akya3,akya4", 1),
        (["akya2", "akya1", "akya4"], {"nodes": 3}, "akya4", 1),
        (["akya2", "akya1"], {"nodes": 4}, "", 1),
        (["akya2", "akya1"], {"nodes": 9}, "", 1),
        (["akya2", "akya1"], {"exclude": "akya3,akya4"}, "akya3,akya4,akya1", 1),
        # Only nodes with the feature count.
        (["akya4", "akya1"], {"constraint": "big"}, "", 1),
        (["akya4", "akya1"], {"constraint": "V100"}, "akya1,akya4", 0),
        (["akya1"], {"constraint": "V100&big"}, "akya1", 0),
        (["barbun1", "akya1"], {"partition": "debug", "constraint": "akya-cuda"}, "akya1", 0),
        # Never a node that the user names.
        (["akya2"], {"nodelist": "akya2"}, "", 1),
        (["akya2", "akya3"], {"nodelist": "akya[1-2]", "nodes": 2}, "akya3", 1),
        (["akya3"], {"nodelist": "akya2"}, "akya3", 0),
        (["akya2"], {"exclude": "akya2"}, "akya2", 0),
    ],
)
def test_what_a_job_leaves_out(names: list[str], asks: dict[str, object], exclude: str, warnings: int) -> None:
    assert choose(bad(*names), **asks) == (exclude, warnings)


@pytest.fixture
def submission(experiment: Callable[..., Experiment], tmp_path: Path) -> Submission:
    one = experiment(f"cluster.runs_folder={tmp_path}")
    return Submission(Prepared(one, RunDir(tmp_path / run_id(one)), ASKS, Path(__file__)))


def slurm_answers(monkeypatch: pytest.MonkeyPatch, error: SlurmError | None = None) -> list[str]:
    calls: list[str] = []

    def run(argv: Sequence[str], **_more: object) -> str:
        calls.append(argv[0])
        if error:
            raise error
        return "\n".join(queries.SEPARATOR.join((one.name, one.partition, ",".join(one.features))) for one in NODES)

    monkeypatch.setattr(client, "run", run)
    return calls


def test_slurm_is_asked_once_and_only_where_nodes_are_known_as_bad(
    submission: Submission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = slurm_answers(monkeypatch)
    assert "--exclude" not in submission.script() and not calls
    record_bad(tmp_path, "", Fault("akya2", "gpus", "no GPU", time.time()))
    again = replace(submission)
    assert "#SBATCH --exclude=akya2\n" in again.script()
    intent = again.intent()
    assert intent.sbatch["exclude"] == "akya2" and intent.bad_nodes == {"akya2": "gpus: no GPU"}
    # The request is the user's, and so is what runs are compared by.
    assert intent.request["exclude"] == "" and calls == ["sinfo"]


def test_a_silent_slurm_leaves_no_node_out(
    submission: Submission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_answers(monkeypatch, SlurmError("sinfo", "Socket timed out", transient=True))
    record_bad(tmp_path, "", Fault("akya2", "gpus", "no GPU", time.time()))
    assert "--exclude" not in submission.script()
    assert "akya2" in submission.exclusion.warnings[0]


def test_without_slurm_no_list_is_read(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    record_bad(tmp_path, "", Fault("akya2", "gpus", "no GPU", time.time()))
    cluster = experiment(f"cluster.runs_folder={tmp_path}", cluster="local").cluster
    assert exclusion.of_request(cluster, ASKS) == Exclusion("")


def test_a_shared_list_counts_for_as_long_as_the_site_says(
    experiment: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_answers(monkeypatch)
    shared = tmp_path / "shared"
    record_bad(tmp_path / "none", str(shared), Fault("akya3", "clock", "late", time.time() - 2 * 86_400))
    own = [f"cluster.runs_folder={tmp_path}", f"cluster.bad_nodes={shared}"]
    assert exclusion.of_request(experiment(*own).cluster, ASKS).exclude == "akya3"
    assert exclusion.of_request(experiment(*own, "cluster.bad_nodes_days=1").cluster, ASKS).exclude == ""


def test_the_job_that_checks_an_environment_leaves_them_out(
    experiment: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_answers(monkeypatch)
    record_bad(tmp_path, "", Fault("akya2", "gpus", "no GPU", time.time()))
    sent: list[str] = []
    monkeypatch.setattr(commands, "sbatch", sent.append)
    monkeypatch.setattr(probe, "found", lambda one, in_a_job: in_a_job("true"))
    monkeypatch.setattr(prepare, "on_slurm_or_failed", lambda: None)
    monkeypatch.setattr(probe_job, "WAIT_SECONDS", 0)
    monkeypatch.setattr(probe_job, "_is_there", lambda name: False)
    own = [f"cluster.scratch={tmp_path}", f"cluster.runs_folder={tmp_path}"]
    prepare._in_environment(experiment(*own, "resources.account=ayse"))
    assert "#SBATCH --exclude=akya2\n" in sent[0] and "#SBATCH --partition=debug\n" in sent[0]


def test_a_message_names_the_last_few(
    submission: Submission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [Node(f"akya{number}", "akya-cuda", []) for number in range(9)]
    monkeypatch.setattr(queries, "every_node", lambda: nodes)
    for number in range(6):
        record_bad(tmp_path, "", Fault(f"akya{number}", "gpus", "no GPU", time.time() - 60 + number))
    messages.bad_nodes(submission)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "akya5" in lines[3] and lines[4] == "  and 2 more (truba nodes)"
