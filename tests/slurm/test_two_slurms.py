"""Two Slurm clusters on one file system: what each login node takes, and what it says of the other's runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import TESTCLUSTER, Cluster, wait_until
from truba import Truba, run_dirs

H100 = ["resources.partition=kolyoz-cuda", "resources.constraint=H100"]
NODES = (
    "NodeName=kolyoz[1-2] NodeAddr=10.77.0.254 Sockets=2 CoresPerSocket=32 RealMemory=1048576 Gres=gpu:h100:4 "
    "Feature=kolyoz-cuda,H100\n"
)
PARTITION = "PartitionName=kolyoz-cuda Nodes=kolyoz[1-2] MaxTime=3-00:00:00 DefMemPerCPU=4000 State=UP\n"
# One namespace for the host name, so that the daemon and the commands are those of another machine.
AS_CUDA_UI = ["unshare", "--uts", "sh", "-c", 'hostname cuda-ui; exec "$@"', "sh"]


@dataclass
class Second:
    """The controller of a second Slurm, without nodes that answer: its jobs stay pending."""

    cluster: Cluster
    conf: Path

    def run(self, project: Truba, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command as ayse on cuda-ui, in a project's folder."""
        inside = [str(TESTCLUSTER / "lib" / "as-user"), str(self.cluster.folder), "ayse", str(project.project)]
        variables = [f"{name}={value}" for name, value in project.environment.items()]
        command = [*AS_CUDA_UI, *inside, "env", f"SLURM_CONF={self.conf}", *variables, *argv]
        return self.cluster.run(command, user="root", check=False)

    def truba(self, project: Truba, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(project, sys.executable, "-m", "truba_runner", *arguments)


@pytest.fixture
def second(cluster: Cluster) -> Iterator[Second]:
    """A second Slurm whose next job has the id of ayse's next job in the first."""
    folder = cluster.folder / "cuda"
    conf = folder / "etc" / "slurm.conf"
    cluster.run(["mkdir", "-p", f"{folder}/etc", f"{folder}/state"], user="root")
    first = (cluster.folder / "etc" / "slurm.conf").read_text()
    kept = [line for line in first.splitlines() if not line.startswith(("Accounting", "Include", "Licenses", "Prolog"))]
    text = "\n".join(kept).replace("ClusterName=testcluster", "ClusterName=cuda").replace("arf-ui1", "cuda-ui")
    text = text.replace(f"{cluster.folder}/state", f"{folder}/state").replace("slurmctld.", "slurmctld-cuda.")
    conf.write_text(f"{text}\nSlurmctldPort=7817\nSlurmdPort=7818\nFirstJobId={_next_id(cluster)}\n{NODES}{PARTITION}")
    (folder / "etc" / "job_submit.lua").write_text((TESTCLUSTER / "job_submit.lua").read_text())
    with (cluster.folder / "etc" / "hosts").open("a") as hosts:
        hosts.write("10.77.0.254 cuda-ui\n")
    cluster.run([*AS_CUDA_UI, "env", f"SLURM_CONF={conf}", "slurmctld"], user="root")
    ping = ["env", f"SLURM_CONF={conf}", "scontrol", "ping"]
    wait_until(lambda: " is UP" in cluster.run(ping, user="root", check=False).stdout)
    yield Second(cluster, conf)
    cluster.run(["env", f"SLURM_CONF={conf}", "scontrol", "shutdown"], user="root", check=False)


def _next_id(cluster: Cluster) -> int:
    job_id = cluster.sbatch(["-c10", "--gres=gpu:1", "--hold"], "true")
    cluster.run(["scancel", job_id])
    return int(job_id) + 1


def of_run(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    return dict(row)


def asking(project: Truba, *resources: str) -> Sequence[str]:
    return ["+experiment=mnist", "data.name=digits", project.runs_folder(), *resources]


def test_each_login_node_takes_its_own_partitions_and_leaves_the_others_runs_alone(
    cluster: Cluster, second: Second, truba: Truba
) -> None:
    there, here = asking(truba, *H100), asking(truba, "resources.partition=akya-cuda")
    refused = truba(*there)
    assert refused.returncode == 2 and not (truba.project / "runs").exists()
    assert "belongs to the Slurm cluster cuda, which accepts jobs only from cuda-ui; this is arf-ui1" in refused.stderr
    assert re.search(r"Type: ssh -t cuda-ui 'cd \S+ && \S+ -m truba_runner \+experiment=mnist .*H100", refused.stderr)
    refused = second.truba(truba, *here)
    assert refused.returncode == 2 and "Type: ssh -t arf-ui1 " in refused.stderr

    submitted = second.truba(truba, *there)
    assert submitted.returncode == 0, submitted.stderr
    (run,) = run_dirs(truba.project)
    runs = ["--runs", str(run.parent)]
    pending = of_run(second.truba(truba, "status", "--json", *runs))
    assert pending["state"] == "PENDING"
    # A job of the same id, which nothing that is said of the run here may reach.
    other = cluster.sbatch(["-c10", "--gres=gpu:1", "--hold"], "true")
    assert other == pending["job_id"]

    unknown = of_run(truba("status", "--json", *runs))
    assert unknown["state"] == "UNKNOWN" and "ask on cuda-ui" in unknown["why"]
    again = truba(*here)
    assert again.returncode == 1 and "another Slurm cluster" in again.stderr and "cuda-ui" in again.stderr
    for command in (["cancel", run.name], ["keep", run.name]):
        done = truba(*command, *runs)
        assert done.returncode == 2 and "Type the command on cuda-ui." in done.stderr, (command, done.stderr)
    why = of_run(truba("why", "--json", *runs, run.name))
    assert [one["reason"] for one in why["findings"]] == ["other-slurm"]
    used = json.loads(truba("usage", "--json", *runs).stdout)["usage"]
    assert [row["core_hours"] for row in used] in ([0], [None], [])
    assert cluster.states(other) == ["PENDING"]

    assert second.truba(truba, "cancel", run.name, *runs).returncode == 0
    assert of_run(second.truba(truba, "status", "--json", *runs))["state"] == "CANCELLED"
    assert cluster.states(other) == ["PENDING"]
    cluster.run(["scancel", other])
