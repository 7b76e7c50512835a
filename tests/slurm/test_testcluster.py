"""The test cluster itself: its submit rules, users, limits and failures, and that it leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import EXIT_UNAVAILABLE, POLL_SECONDS, TESTCLUSTER, Cluster

AKYA = ["-p", "akya-cuda"]
BARBUN_GPU = ["-p", "barbun-cuda"]
PALAMUT = ["-p", "palamut-cuda"]
KOLYOZ = ["-p", "kolyoz-cuda"]
DEBUG = ["-p", "debug"]

# Prints Slurm's version, and what the accounting says of a job once it has ended.
SHOWS_ITS_SLURM = """
sinfo --version
sbatch --quiet --parsable -p debug -c 1 --wrap true >job
until sacct -nPX -o jobid,state,exitcode -j "$(cat job)" | grep COMPLETED; do sleep 0.1; done
"""

# What breaks a rule, its nearest legal twin, and words that the refusal must say.
RULES = {
    "GPU required": (
        [*AKYA, "-c10"],
        [*AKYA, "-c10", "--gres=gpu:1"],
        "akya-cuda kuyruguna sadece GPU talebi olan isler gonderilebilir.",
    ),
    "GPU required on the default partition": (
        ["-c10"],
        ["-c10", "--gres=gpu:1"],
        "akya-cuda kuyruguna sadece GPU talebi olan isler gonderilebilir.",
    ),
    "cores not a multiple": (
        [*AKYA, "-c15", "--gres=gpu:1"],
        [*AKYA, "-c10", "--gres=gpu:1"],
        "akya-cuda kuyruguna gonderilen islerin cekirdek sayisi 10 ve katlari olmalidir",
    ),
    "too few cores for the GPUs": (
        [*BARBUN_GPU, "-c20", "--gres=gpu:2"],
        [*BARBUN_GPU, "-c40", "--gres=gpu:2"],
        "Too few CPUs requested for the number of GPUs.",
    ),
    "more cores than the GPUs have": (
        [*AKYA, "-c20", "--gres=gpu:1"],
        [*AKYA, "-c20", "--gres=gpu:2"],
        "GPU basina 10 cekirdek",
    ),
    "no cores asked for": (
        [*AKYA, "--gres=gpu:1"],
        [*AKYA, "--gres=gpu:1", "-n10"],
        "cekirdek sayisi 10 ve katlari olmalidir",
    ),
    "cores by tasks per node": (
        [*KOLYOZ, "-C", "H100|H200", "-N2", "--ntasks-per-node=4", "-c8", "--gres=gpu:4"],
        [*KOLYOZ, "-C", "H100|H200", "-N2", "--ntasks-per-node=4", "-c16", "--gres=gpu:4"],
        "Too few CPUs requested for the number of GPUs.",
    ),
    "cores over two nodes": (
        [*AKYA, "-N2", "-n2", "-c15", "--gres=gpu:1"],
        [*AKYA, "-N2", "-n2", "-c10", "--gres=gpu:1"],
        "cekirdek sayisi 10 ve katlari olmalidir",
    ),
    "GPUs by --gpus": (
        [*AKYA, "--gpus=2", "-n1", "-c10"],
        [*AKYA, "--gpus=2", "-n1", "-c20"],
        "Too few CPUs requested for the number of GPUs.",
    ),
    "cores by --cpus-per-gpu": (
        [*AKYA, "--gpus=2", "-n1", "--cpus-per-gpu=5"],
        [*AKYA, "--gpus=2", "-n1", "--cpus-per-gpu=10"],
        "Too few CPUs requested for the number of GPUs.",
    ),
    "palamut's cores": (
        [*PALAMUT, "-c20", "--gres=gpu:1"],
        [*PALAMUT, "-c16", "--gres=gpu:a100:1"],
        "palamut-cuda kuyruguna gonderilen islerin cekirdek sayisi 16 ve katlari olmalidir",
    ),
    "debug is short": (
        [*DEBUG, "-c10", "--gres=gpu:1", "-C", "akya-cuda", "-t", "5:00:00"],
        [*DEBUG, "-c10", "--gres=gpu:1", "-C", "akya-cuda", "-t", "4:00:00"],
        "time limit",
    ),
    "three days at most": (
        [*AKYA, "-c10", "--gres=gpu:1", "-t", "3-00:01:00"],
        [*AKYA, "-c10", "--gres=gpu:1", "-t", "3-00:00:00"],
        "time limit",
    ),
    "no GPU on a CPU partition": (
        ["-p", "hamsi", "-c56", "--gres=gpu:1"],
        ["-p", "hamsi", "-c56"],
        "Requested node configuration is not available",
    ),
    "orfoz's cores": (
        ["-p", "orfoz", "-c55"],
        ["-p", "orfoz", "-c56"],
        "Orfoz kuyruguna gonderilen islerde node basina 56/112 cekirdek talep ediniz.",
    ),
    "hamsi's cores": (
        ["-p", "hamsi", "-n28"],
        ["-p", "hamsi", "-n56"],
        "Hamsi kuyruguna gonderilen isleride node basina 56 cekirdek talep ediniz",
    ),
    "barbun's cores": (
        ["-p", "barbun", "-c19"],
        ["-p", "barbun", "-c20"],
        "barbun kuyruguna gonderilen islerin cekirdek sayisi 20 ve katlari olmalidir",
    ),
    "output on scratch": (
        [*AKYA, "-c10", "--gres=gpu:1", "--output=/tmp/out.txt"],
        [*AKYA, "-c10", "--gres=gpu:1", "--output={scratch}/logs/%j.txt"],
        "dizini altinda calistiriniz!",
    ),
    "output by dots": (
        [*AKYA, "-c10", "--gres=gpu:1", "--output=../../out.txt"],
        [*AKYA, "-c10", "--gres=gpu:1", "--output=../ayse/out.txt"],
        "dizini altinda calistiriniz!",
    ),
    "error on scratch": (
        [*AKYA, "-c10", "--gres=gpu:1", "--error=/home/ayse/err.txt"],
        [*AKYA, "-c10", "--gres=gpu:1", "--error=err.txt"],
        "dizini altinda calistiriniz!",
    ),
    "working directory on scratch": (
        [*AKYA, "-c10", "--gres=gpu:1", "--chdir=/tmp"],
        [*AKYA, "-c10", "--gres=gpu:1", "--chdir={scratch}"],
        "Lutfen islerinizi ",
    ),
    "every partition of several": (
        ["-p", "lowprio,barbun-cuda", "-c10", "--gres=gpu:1"],
        ["-p", "lowprio,barbun-cuda", "-c20", "--gres=gpu:1"],
        "barbun-cuda kuyruguna gonderilen islerin cekirdek sayisi 20 ve katlari olmalidir",
    ),
    "account": (
        [*AKYA, "-c10", "--gres=gpu:1", "-A", "mehmet"],
        [*AKYA, "-c10", "--gres=gpu:1", "-A", "proj1"],
        "Invalid account",
    ),
    "array size": (
        [*AKYA, "-c10", "--gres=gpu:1", "--array=0-2001"],
        [*AKYA, "-c10", "--gres=gpu:1", "--array=0-2000"],
        "Invalid job array",
    ),
}


def submit(cluster: Cluster, arguments: list[str], *, user: str = "ayse", hold: bool = False) -> tuple[int, str]:
    """Try a submission; the status and all that was printed. `--test-only` unless it is to be held in the queue."""
    filled = [argument.format(scratch=cluster.scratch(user)) for argument in arguments]
    mode = ["--hold"] if hold else ["--test-only"]
    done = cluster.run(["sbatch", *mode, *filled, "--wrap", "true"], user=user, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("illegal", "legal", "words"), RULES.values(), ids=RULES.keys())
def test_a_rule_refuses_and_its_legal_twin_passes(
    cluster: Cluster, illegal: list[str], legal: list[str], words: str
) -> None:
    status, said = submit(cluster, illegal)
    assert status != 0 and words in said, said
    status, said = submit(cluster, legal)
    assert status == 0, said


def test_a_refusal_is_the_same_without_test_only(cluster: Cluster) -> None:
    status, said = submit(cluster, [*AKYA, "-c10"], hold=True)
    assert status == 1
    # Slurm's line behind it names an error code that the filter chose, not the rule.
    assert "sbatch: error: akya-cuda kuyruguna sadece GPU talebi olan isler gonderilebilir." in said
    assert "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" in said


def test_debug_takes_any_number_of_cores_with_or_without_a_family(cluster: Cluster) -> None:
    for asked in (["-c3", "--gres=gpu:1", "-C", "akya-cuda"], ["-c110", "-C", "orfoz"], ["-c7"]):
        status, said = submit(cluster, [*DEBUG, *asked])
        assert status == 0, said


def test_root_keeps_the_same_rules(cluster: Cluster) -> None:
    status, said = submit(cluster, [*AKYA, "-c10"], user="root")
    assert status != 0 and "sadece GPU talebi olan isler" in said


def test_a_job_without_a_time_gets_two_minutes(cluster: Cluster) -> None:
    job = cluster.sbatch(["-c10", "--gres=gpu:1", "--hold"], "true")
    assert "TimeLimit=00:02:00" in cluster.run(["scontrol", "show", "job", job]).stdout
    cluster.run(["scancel", job])


def test_a_batch_job_sees_its_node_and_gpus(cluster: Cluster) -> None:
    script = "hostname; echo $CUDA_VISIBLE_DEVICES; echo $HOME; python -c 'import sys; print(sys.executable)'"
    job = cluster.sbatch(["-p", "barbun-cuda", "-c40", "--gres=gpu:2", "-o", "seen-%j.txt"], script)
    cluster.wait_for_state(job, "COMPLETED")
    node, gpus, home, python = (cluster.scratch() / f"seen-{job}.txt").read_text().splitlines()
    assert node in {"barbun121", "barbun122"}
    assert gpus == "0,1"
    assert home == str(cluster.folder / "home/ayse")
    assert python == cluster.run(["python", "-c", "import sys; print(sys.executable)"]).stdout.strip()
    assert cluster.wait_for_state(job, "COMPLETED", in_accounting=True)


def test_a_job_that_lost_slurm_conf_still_finds_the_cluster(cluster: Cluster) -> None:
    job = cluster.sbatch(["-c10", "--gres=gpu:1", "--export=NONE"], "unset SLURM_CONF; srun -c10 /bin/hostname")
    assert cluster.wait_for_state(job, {"COMPLETED", "FAILED"}) == "COMPLETED"


def test_interactive_srun_needs_no_scratch(cluster: Cluster) -> None:
    argv = ["srun", *DEBUG, "-C", "akya-cuda", "-n1", "-c10", "--gres=gpu:1", "hostname"]
    assert cluster.run(argv, cwd="/tmp").stdout.startswith("akya")


def test_interactive_srun_with_a_terminal(cluster: Cluster) -> None:
    argv = ["srun", *DEBUG, "-C", "akya-cuda", "-n1", "-c10", "--gres=gpu:1", "--pty"]
    argv += ["/bin/sh", "-c", "test -t 1 && hostname"]
    in_terminal = ["script", "--quiet", "--return", "--command", " ".join(f"'{word}'" for word in argv), "/dev/null"]
    assert "akya" in cluster.run(in_terminal).stdout


def test_users_are_apart(cluster: Cluster) -> None:
    secret = cluster.scratch("ayse") / "secret"
    cluster.run(["sh", "-c", f"id -un; id -u; echo hush >{secret}"])
    refused = cluster.run(["cat", secret], user="mehmet", check=False)
    assert refused.returncode != 0 and "Permission denied" in refused.stderr
    for user, uid in {"ayse": 60001, "mehmet": 60002}.items():
        seen = cluster.run(["sh", "-c", "id -u; whoami; echo $USER $LOGNAME; pwd; hostname"], user=user)
        assert seen.stdout.split() == [str(uid), user, user, user, str(cluster.scratch(user)), "arf-ui1"]


def test_an_undergraduate_is_refused_on_contracted_partitions(cluster: Cluster) -> None:
    for job in ([*PALAMUT, "-c16", "--gres=gpu:1"], [*KOLYOZ, "-c16", "--gres=gpu:1", "-C", "H100"]):
        status, said = submit(cluster, job, user="mehmet")
        assert status != 0 and "Invalid account or account/partition combination" in said


def test_an_undergraduate_waits_for_more_than_four_cores(cluster: Cluster) -> None:
    job = cluster.sbatch(["-c10", "--gres=gpu:1"], "true", user="mehmet")
    shown = eventually(lambda: cluster.run(["squeue", "-h", "-j", job, "-o", "%T %r"]).stdout, contains="Assoc")
    assert shown.split() == ["PENDING", "AssocGrpCpuLimit"]
    cluster.run(["scancel", job], user="mehmet")


def preempt_on_akya4(cluster: Cluster, script: str) -> str:
    """Submit a lowprio job, then a better one for its node; return the first one's id when the other is done."""
    whole_node = ["-w", "akya4", "-c40", "--gres=gpu:4"]
    low = cluster.sbatch(
        ["-p", "lowprio", "--signal=B:USR1@60", "--requeue", "--open-mode=append", *whole_node], script
    )
    cluster.wait_for_state(low, "RUNNING")
    high = cluster.sbatch([*AKYA, *whole_node], "true")
    cluster.wait_for_state(high, "COMPLETED", timeout=240)
    return low


@pytest.mark.slow
def test_a_preempted_job_that_stays_is_killed_and_requeued(cluster: Cluster) -> None:
    low = preempt_on_akya4(cluster, "trap 'echo asked to go' USR1; while :; do sleep 0.1; done")
    assert "Restarts=1" in cluster.run(["scontrol", "show", "job", low]).stdout
    assert "asked to go" in (cluster.scratch() / f"slurm-{low}.out").read_text()
    cluster.run(["scancel", low])


def test_a_preempted_job_may_requeue_itself(cluster: Cluster) -> None:
    low = preempt_on_akya4(cluster, "trap 'scontrol requeue $SLURM_JOB_ID; sleep 9' USR1; while :; do sleep 0.1; done")
    assert "Restarts=1" in cluster.run(["scontrol", "show", "job", low]).stdout
    cluster.run(["scancel", low])


def test_a_preempted_job_that_ends_by_itself_is_not_requeued(cluster: Cluster) -> None:
    low = preempt_on_akya4(cluster, "trap 'exit 0' USR1; while :; do sleep 0.1; done")
    cluster.wait_for_state(low, "COMPLETED")
    assert "Restarts=0" in cluster.run(["scontrol", "show", "job", low]).stdout


def test_the_queue_commands_of_another_user_are_refused(cluster: Cluster) -> None:
    job = cluster.sbatch(["-c10", "--gres=gpu:1", "--hold"], "true")
    assert cluster.run(["scancel", job], user="mehmet", check=False).returncode != 0
    cluster.run(["scancel", job])


def test_nodes_are_machines_of_their_own(cluster: Cluster) -> None:
    """Each may listen on the same port at all addresses; none sees another's processes or shared memory."""
    program = (
        "import os, socket, time; socket.create_server(('0.0.0.0', 29500)); open('/dev/shm/mark', 'x').close();"
        "print(sum(name.isdigit() for name in os.listdir('/proc')) < 20); time.sleep(0.5)"
    )
    step = ["-N2", "-n2", "--ntasks-per-node=1", "-c10", "--gres=gpu:1"]
    assert cluster.run(["srun", *AKYA, *step, "python", "-c", program]).stdout.split() == ["True", "True"]


def test_a_dead_node_comes_back(cluster: Cluster) -> None:
    cluster.node_down("hamsi1")
    assert cluster.run(["ping", "-c1", "-W1", "hamsi1"], check=False).returncode != 0
    cluster.node_up("hamsi1")
    assert cluster.run(["srun", "-p", "hamsi", "-c56", "hostname"]).stdout == "hamsi1\n"


@pytest.mark.slow
def test_a_job_on_a_dead_node_is_requeued_elsewhere(cluster: Cluster) -> None:
    script = 'echo $SLURMD_NODENAME $SLURM_RESTART_COUNT; [ -n "$SLURM_RESTART_COUNT" ] || sleep 300'
    job = cluster.sbatch([*BARBUN_GPU, "-c20", "--gres=gpu:1", "-t10", "--requeue", "--open-mode=append"], script)
    output = cluster.scratch() / f"slurm-{job}.out"
    first = eventually(lambda: output.read_text() if output.exists() else "", contains="barbun").strip()
    cluster.node_down(first)
    cluster.wait_for_state(job, "COMPLETED", timeout=240)
    assert output.read_text().split() == [first, *sorted({"barbun121", "barbun122"} - {first}), "1"]
    assert "NODE_FAIL" in cluster.run(["sacct", "-nXDj", job, "-o", "state"]).stdout
    cluster.node_up(first)


# ---- a cluster beside the session's, and what is left of it


def run_in_fresh_cluster(
    *arguments: str, input: str = "", testcluster: Path = TESTCLUSTER
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [testcluster / "run", *arguments], capture_output=True, text=True, timeout=240, check=False, input=input
    )


def eventually(look: Callable[[], str], *, contains: str, timeout: float = 240) -> str:
    deadline = time.monotonic() + timeout
    while contains not in (seen := look()):
        assert time.monotonic() < deadline, f"no {contains!r} after {timeout} s: {seen!r}"
        time.sleep(POLL_SECONDS)
    return seen


def processes_of(folder: str) -> list[str]:
    """Command lines of the living processes that name a cluster's folder, in their arguments or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
            if folder.encode() in arguments + (process / "environ").read_bytes():
                found.append(arguments.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return found


def clusters_ports() -> set[str]:
    """Where a cluster's daemons listen on this machine itself; other programs come and go."""
    shown = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in shown.splitlines() if re.search("slurm|munge|mariadb|mysql", line)]
    return {address for _, _, _, address, *_ in lines}


def test_run_returns_the_commands_status_and_output_only(cluster: Cluster) -> None:
    ports = clusters_ports()
    done = run_in_fresh_cluster("sh", "-c", 'sinfo -h -o %N -p smp; echo "$TRUBA_TESTCLUSTER_INSIDE" >&2; exit 42')
    assert (done.returncode, done.stdout) == (42, "smp1\n")
    folder = done.stderr.strip()
    assert folder != str(cluster.folder)
    assert processes_of(folder) == []
    assert not Path(folder).exists()
    assert clusters_ports() == ports
    assert cluster.run(["sinfo", "-h", "-o", "%N", "-p", "smp"]).stdout == "smp1\n"


@pytest.mark.usefixtures("cluster")
def test_run_as_a_user_whose_command_crashes() -> None:
    done = run_in_fresh_cluster("--user", "mehmet", "sh", "-c", "cat; whoami; kill -SEGV $$", input="from stdin\n")
    assert (done.returncode, done.stdout) == (128 + signal.SIGSEGV, "from stdin\nmehmet\n")


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT", "SIGTERM"])
@pytest.mark.usefixtures("cluster")
def test_nothing_is_left_of_a_run_that_was_killed(signal_name: str) -> None:
    signal_number = signal.Signals[signal_name]
    script = 'sbatch -c10 --gres=gpu:1 --wrap "sleep 600" >/dev/null; echo "$TRUBA_TESTCLUSTER_INSIDE"; sleep 600'
    with subprocess.Popen(
        [TESTCLUSTER / "run", "--user", "ayse", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        folder = running.stdout.readline().strip()
        assert len(processes_of(folder)) > 15  # two daemons, fourteen nodes
        running.send_signal(signal_number)
        assert running.wait(240) in {-signal.SIGKILL, 128 + signal_number}
    eventually(lambda: f"{len(processes_of(folder))} left", contains="0 left", timeout=240)
    if signal_number != signal.SIGKILL:
        assert not Path(folder).exists()


def test_run_says_why_it_can_not() -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*nobody, TESTCLUSTER / "run", "true"], capture_output=True, text=True, timeout=240, check=False, cwd="/"
    )
    assert done.returncode == 77 and "root is needed" in done.stderr and done.stdout == ""


@pytest.mark.usefixtures("cluster")
def test_ctrl_c_at_a_terminal_is_for_the_command() -> None:
    """As in an interactive shell: the cluster goes on, the command decides."""
    script = "trap 'told=1' INT; echo ready; until [ -n \"$told\" ]; do sleep 0.05; done; sinfo -h -p smp -o %N; exit 7"
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", TESTCLUSTER / "run", "sh", "-c", script], stdin=terminal, stdout=subprocess.PIPE
    ) as running:
        os.close(terminal)
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        os.write(controller, b"\x03")
        assert running.stdout.read() == b"smp1\n"
    os.close(controller)
    assert running.returncode == 7


@pytest.mark.usefixtures("cluster")
def test_users_can_run_a_checkout_in_a_closed_folder(tmp_path: Path) -> None:
    """Of the folder only the checkout shows, read-only; outside, the folder is as closed as before."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    checkout = closed / "deep" / "checkout"
    shutil.copytree(TESTCLUSTER, checkout / "slurm" / "testcluster")
    (closed / "secret").touch()
    testcluster = checkout / "slurm" / "testcluster"
    script = 'head -n1 "$0/enter"; test -e "$1/secret" || echo hidden'
    done = run_in_fresh_cluster(
        "--user", "mehmet", "sh", "-c", script, str(testcluster), str(closed), testcluster=testcluster
    )
    assert (done.returncode, done.stdout) == (0, "#!/bin/bash\nhidden\n"), done.stderr
    done = run_in_fresh_cluster("sh", "-c", 'touch "$0/new"', str(checkout), testcluster=testcluster)
    assert done.returncode != 0 and "Read-only" in done.stderr
    assert (closed / "secret").exists() and closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("version", ["22.05", "24.11", "26.05"])
def test_a_cluster_runs_the_slurm_that_is_asked_for(version: str) -> None:
    done = run_in_fresh_cluster("--slurm", version, "--user", "ayse", "sh", "-c", SHOWS_ITS_SLURM)
    if done.returncode == EXIT_UNAVAILABLE and "cannot be had" in done.stderr:
        pytest.skip(f"no Slurm {version}: {' '.join(done.stderr.split())}")
    assert done.returncode == 0, done.stderr
    client, accounted = done.stdout.splitlines()
    assert f" {version}." in client and accounted == "1|COMPLETED|0:0"


def test_a_slurm_that_there_is_not_is_refused(cluster: Cluster) -> None:
    done = run_in_fresh_cluster("--slurm", "19.05", "true")
    assert done.returncode == 64 and "22.05 (the machine's own), 24.11 26.05" in done.stderr
    version = os.environ.get("TRUBA_TESTCLUSTER_SLURM", "22.05")
    assert f" {version}." in cluster.run(["sinfo", "--version"]).stdout


@pytest.mark.usefixtures("cluster")
def test_a_lasting_cluster(tmp_path: Path) -> None:
    folder = str(tmp_path / "lasting")

    def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [str(TESTCLUSTER / name), "--cluster", folder, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)

    assert command("status").returncode == 69
    assert command("enter", "true").returncode == 69
    try:
        up = command("up")
        assert up.returncode == 0 and folder in up.stdout, up
        assert command("up").stdout.startswith("already up")
        status = command("status")
        assert status.returncode == 0 and "akya[1-4]" in status.stdout
        entered = command("enter", "--user", "ayse", "sh", "-c", "whoami; pwd; exit 3")
        assert (entered.returncode, entered.stdout) == (3, f"ayse\n{folder}/scratch/ayse\n")
        assert command("node", "down", "akya9").returncode == 64
    finally:
        down = command("down")
    assert down.returncode == 0
    assert command("status").stdout == f"down: {folder}\n"
    assert command("down").returncode == 0
    assert processes_of(folder) == []
    assert not Path(folder).exists()


def test_a_signal_reaches_a_command_that_was_started_inside(cluster: Cluster) -> None:
    script = "trap 'echo told; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    with cluster.popen(["sh", "-c", script]) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGTERM)
        assert running.stdout.read() == "told\n"
    assert running.returncode == 5
