"""Record what Slurm answers to the product's questions, with jobs in many states, for the tests of its parsers.

usage, as root: PYTHONPATH=.:tests:tests/slurm .venv/bin/python tests/slurm/record.py VERSION
The version (22.05, 24.11, 26.05) is the one of the test cluster: set TRUBA_TESTCLUSTER_SLURM to it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence

from cluster import Cluster, wait_until
from slurm_answers import FOLDER, USER, Recording, answered_by, ask, ask_in_vain

SLEEP = "sleep 900"
P100 = "-p barbun-cuda -c 20 --gres=gpu:1 -A proj1"
AKYA = "-p akya-cuda -c 40 --gres=gpu:4 -A proj1"
HAMSI = "-p hamsi -c 56 -A proj1"
EATS = "python3 -c 'x = bytearray(300_000_000); import time; time.sleep(60)'"
# Jobs by name: options of sbatch and the script. Those that run first, then those that wait, then those that end.
RUN = {
    "running": (f"{AKYA} -w akya1 --comment='lr=0.1 and=more words'", SLEEP),
    "two_nodes": ("-p akya-cuda -c 40 --gres=gpu:4 -A ayse -N2 --ntasks-per-node=1 -w akya[3-4]", SLEEP),
    "fills_orfoz": ("-p orfoz -c 112 -A proj1 -L matlab:1", SLEEP),
    "time_limit": (f"{HAMSI} -t 1 --no-requeue", SLEEP),
    "preempted": ("-p lowprio -c 40 --gres=gpu:4 -A proj1 -w akya2 --no-requeue", SLEEP),
    "cancelled": (P100, SLEEP),
    "cancelled_by_root": (P100, SLEEP),
}
WAIT = {
    "resources": "-p orfoz -c 112 -A proj1",
    "priority": "-p orfoz -c 112 -A proj1",
    "account_cores": "-p palamut-cuda -c 96 --gres=gpu:6 -A ayse",
    "qos": "-p hamsi -c 56 -A proj1 --qos=small",
    "held": f"{HAMSI} --hold",
    "begin": f"{HAMSI} --begin=now+1hour",
    "licenses": f"{P100} -L matlab:1",
    "reserved": "-p palamut-cuda -c 16 --gres=gpu:1 -A proj1 --reservation=later",
    "excluded": "-p barbun -c 20 -A proj1 --hold",
    "launch_failed": "-p smp -c 1 -A proj1",
    "cancelled_array": f"{HAMSI} --hold --array=2,5-7%2",
}
END = {
    "completed": "true",
    "failed": "exit 3",
    "killed": "kill -9 $$",
    "environment": "env | grep ^SLURM | sort",
    "missing_program": "srun -n1 -c1 /nowhere/bin/python -u -m truba_runner",
    "bad_interpreter": "printf '#!/nowhere/python\\n' > s.sh; chmod +x s.sh; srun -n1 -c1 ./s.sh",
    "too_many_tasks": "srun -n 999 -c1 true",
    "cancelled_step": "srun -n1 -c1 sleep 900 & sleep 3; scancel $SLURM_JOB_ID.0; wait $!",
}
# Prints the reasons for which a job may wait, from Slurm's library.
REASONS = """
import ctypes, glob
(file, *_) = (path for folder in ("lib/*", "lib64") for path in glob.glob(f"/usr/{folder}/slurm*/libslurmfull.so"))
library = ctypes.CDLL(file)
reason = getattr(library, "slurm_job_state_reason_string", None) or library.slurm_job_reason_string
reason.restype = ctypes.c_char_p
words = (reason(number).decode() for number in range(400))
print(*dict.fromkeys(word for word in words if not word.isdigit()), sep="\\n")
"""


class Site:
    """A cluster with limits, a licence, a reservation and a node that is drained; and its jobs by name."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.jobs: dict[str, str] = {}

    def root(self, *argv: str) -> None:
        self.cluster.run(list(argv), user="root")

    def own(self, *argv: str) -> None:
        self.cluster.run(list(argv))

    def configure(self) -> None:
        admin = ["sacctmgr", "--immediate"]
        self.root(*admin, "add", "qos", "small")
        self.root(*admin, "modify", "qos", "small", "set", "MaxTRESPerUser=cpu=10", "GrpTRES=cpu=500,gres/gpu=8")
        self.root(*admin, "modify", "user", USER, "where", "account=proj1", "set", "qos+=small")
        self.root(*admin, "modify", "account", "proj1", "set", "GrpTRESMins=cpu=100000,gres/gpu=5000")
        prolog = self.cluster.folder / "etc" / "prolog"
        prolog.write_text('#!/bin/sh\n[ "$SLURM_JOB_PARTITION" != smp ]\n')
        prolog.chmod(0o755)
        with (self.cluster.folder / "etc" / "slurm.conf").open("a") as file:
            file.write(f"\nLicenses=matlab:1\nProlog={prolog}\nJobAcctGatherParams=OverMemoryKill\n")
        self.root("scontrol", "reconfigure")
        reason = "bad memory, ticket=7"
        self.root("scontrol", "update", "nodename=kolyoz2", "state=drain", f"reason={reason}")
        later = ["starttime=now+5hours", "duration=60", "nodes=palamut1", "accounts=proj1"]
        self.root("scontrol", "create", "reservation", "reservationname=later", *later)

    def submit(self, name: str, options: str, script: str = SLEEP) -> str:
        arguments = [
            "-t",
            "20",
            f"--job-name={name}",
            f"--output={self.cluster.scratch()}/{name}.out",
            "--open-mode=append",
        ]
        self.jobs[name] = self.cluster.sbatch([*arguments, *shlex.split(options)], script)
        return self.jobs[name]

    def reason(self, name: str) -> str:
        argv = ["squeue", "--noheader", "--states=all", "--format=%r", f"--jobs={self.jobs[name]}"]
        return self.cluster.run(argv).stdout.strip()

    def wait_for_reason(self, name: str, reason: str) -> None:
        wait_until(lambda: self.reason(name) == reason, lambda: f"{name}: {self.reason(name)}")

    def submit_all(self) -> None:
        """Make the jobs, in an order that gives each the same id everywhere; return once each is as it will be."""
        wait = self.cluster.wait_for_state
        for name, (options, script) in RUN.items():
            self.submit(name, options, script)
            wait(self.jobs[name], "RUNNING")
        for name, options in WAIT.items():
            self.submit(name, options)
        running = self.jobs["running"]
        self.submit("dependency", f"{HAMSI} -d afterok:{running}")
        self.root("scancel", self.jobs["cancelled_by_root"])
        self.own("scancel", self.jobs["cancelled"])
        self.own("scancel", self.jobs["cancelled_array"])
        self.own("scontrol", "update", f"jobid={self.jobs['excluded']}", "excnodelist=barbun1")
        self.own("scontrol", "release", self.jobs["excluded"])
        wait(self.jobs["cancelled"], "CANCELLED")
        wait(self.jobs["cancelled_by_root"], "CANCELLED")
        for name, script in END.items():
            self.submit(name, P100, script)
        self.submit("memory", f"{P100} --mem=50M", EATS)
        for name in ("requeued", "requeued_held", "requeued_then_held"):
            self.submit(name, P100, '[ -n "$SLURM_RESTART_COUNT" ] || sleep 900')
            wait(self.jobs[name], "RUNNING")
            self.own("scontrol", "requeuehold" if name == "requeued_held" else "requeue", self.jobs[name])
        self.own("scontrol", "hold", self.jobs["requeued_then_held"])
        self.submit("better", f"{AKYA} -w akya2", "sleep 5")
        for name in END:
            wait(self.jobs[name], {"COMPLETED", "FAILED", "CANCELLED"}, in_accounting=True)
        self.submit("never", f"{HAMSI} -d afterok:{self.jobs['failed']}")
        self.submit("array", f"{P100} --array=0-3%1")
        wait(self.jobs["preempted"], "PREEMPTED", in_accounting=True)
        wait(self.jobs["memory"], {"OUT_OF_MEMORY", "FAILED", "CANCELLED"}, in_accounting=True)
        wait(self.jobs["requeued"], "COMPLETED", in_accounting=True)
        wait(self.jobs["time_limit"], "TIMEOUT", in_accounting=True)
        for name, reason in {
            "resources": "Resources", "priority": "Priority", "account_cores": "AssocGrpCpuLimit",
            "qos": "QOSMaxCpuPerUserLimit", "held": "JobHeldUser", "begin": "BeginTime", "licenses": "Licenses",
            "reserved": "Reservation", "excluded": "BadConstraints", "launch_failed": "launch failed requeued held",
            "dependency": "Dependency", "never": "DependencyNeverSatisfied",
        }.items():  # fmt: skip
            self.wait_for_reason(name, reason)
        for name in ("requeued_held", "requeued_then_held"):
            wait(self.jobs[name], "PENDING")


def main(version: str) -> None:
    with Cluster() as cluster:
        said = cluster.run(["sbatch", "--version"]).stdout
        if f"slurm-wlm {version}." not in said:
            sys.exit(f"this cluster is {said.strip()}, not {version}; set TRUBA_TESTCLUSTER_SLURM")
        site = Site(cluster)
        site.configure()
        site.submit_all()
        recording = Recording(site.jobs)

        def run(argv: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
            return cluster.run(argv, env={"SLURM_BITSTR_LEN": "0"}, check=False, input=text)

        with answered_by(recording.keep(run)):
            ask(site.jobs)
            conf = cluster.folder / "etc" / "slurm.conf"
            conf.write_text(conf.read_text().replace("MessageTimeout=60", "MessageTimeout=2"))
            for daemon in ("slurmdbd", "slurmctld"):
                site.root("sh", "-c", f"kill -KILL $(cat /run/{daemon}.pid)")
                ask_in_vain(daemon)
        reasons = cluster.run([sys.executable, "-c", REASONS], user="root", cwd="/").stdout
        (FOLDER / f"{version}-reasons.txt").write_text(reasons)
        for name in site.jobs:
            file = cluster.scratch() / f"{name}.out"
            recording.logs[name] = file.read_text() if file.exists() else ""
        recording.write(version, {str(cluster.folder): "/cluster"})


if __name__ == "__main__":
    main(sys.argv[1])
