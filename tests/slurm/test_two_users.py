"""Two users of one cluster: what mehmet makes, links, spoils or holds changes nothing for ayse, and is not run."""

from __future__ import annotations

import itertools
import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
from cluster import Cluster, wait_until
from in_process import knowing
from in_process import truba as in_process
from laptop import AYSE
from truba import ROOT, Truba

from truba_runner.runs.run_directory import RunDir

PLAIN = ROOT / "tests" / "plain_backend"
EXPERIMENT = """# @package _global_
name: par
job: {module: nothing, backend: plain, options: {rate: 0.1}}
data: {name: none}
train: {epochs: 1}
"""
# What a user's script begins with; its arguments are paths.
PREAMBLE = f"""
import json, os, sys
from pathlib import Path
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from damaged_runs import make_run, make_search, make_sweep
from truba_runner.runs.run_directory import RunDir, config_text
CONFIG = config_text({{"name": "mnist", "cluster": {{"scratch": "", "acknowledgement": ""}}}})
shared, *more = map(Path, sys.argv[1:])

def for_all(folder):
    "Who likes may read it."
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
"""
_numbers = itertools.count()


def as_user(cluster: Cluster, user: str, script: str, *arguments: Path, env: dict[str, str] | None = None) -> str:
    """What a script of a user's prints."""
    argv = [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), *map(str, arguments)]
    return cluster.run(argv, user=user, env=env).stdout


@pytest.fixture
def shared(cluster: Cluster) -> Path:
    """A folder that each may put something into, and where nobody may touch what is another's."""
    folder = cluster.scratch_root / f"shared{next(_numbers)}"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def ayse(truba: Truba) -> Iterator[Truba]:
    (truba.project / "conf" / "experiment").mkdir(parents=True)
    truba.write("conf/experiment/par.yaml", EXPERIMENT)
    truba.write("jobs/nothing.py", "")
    truba.environment["PYTHONPATH"] = f"{ROOT}:{PLAIN}"
    yield truba


def in_queue(truba: Truba) -> dict[str, str]:
    """Job ids and names."""
    shown = truba.cluster.run(["squeue", "--noheader", "--format=%i|%j", f"--user={truba.user}"]).stdout
    jobs: dict[str, str] = dict(line.split("|") for line in shown.splitlines())
    return {job_id: name for job_id, name in jobs.items() if name.startswith("par-")}


def command(runs: Path, *more: str) -> list[str]:
    return ["+experiment=par", f"cluster.runs_folder={runs}", *more]


def run_of(truba: Truba, runs: Path) -> str:
    """What the run of a command will be called; anyone can tell."""
    environment = {**os.environ, **truba.environment, "TRUBA_CLUSTER": "testcluster", "TRUBA_SCRATCH": str(runs.parent)}
    with knowing(PLAIN):
        planned = in_process(*command(runs, "dry_run=true"), cwd=truba.project, environment=environment)
    assert planned.returncode == 0, planned.stderr
    return next(word for word in planned.stdout.replace("/", " ").split() if word.startswith("par-"))[:12]


# -- what he has made, or can write to ---------------------------------------------------------------------------


def test_what_he_has_made_or_can_write_to_is_not_used(cluster: Cluster, ayse: Truba, shared: Path) -> None:
    before = in_queue(ayse)
    name = run_of(ayse, shared / "sticky")
    as_user(cluster, "ayse", "(shared / 'open').mkdir(); (shared / 'open').chmod(0o777)", shared)
    sticky = shared / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    as_user(
        cluster, "mehmet",
        """
        (shared / "his").mkdir(mode=0o755)
        for name in (".code", ".sweeps", ".nodes", more[0].name):
            (shared / "sticky" / name).mkdir(mode=0o755)
        (shared / "sticky" / ".lock").symlink_to(shared / "not there")
        """,
        shared, Path(name),
    )  # fmt: skip
    for asked, named in (
        (["-m", *command(shared / "his"), "train.seed=1,2"], {shared / "his": "belongs to mehmet (mode 0755)"}),
        (command(shared / "open"), {shared / "open": "owner ayse, mode 0777"}),
        (
            command(sticky),
            {sticky / one: "belongs to mehmet (mode 0" for one in (".code", ".sweeps", ".nodes", ".lock", name)},
        ),
    ):
        done = ayse(*asked)
        assert done.returncode == 2, done.stdout + done.stderr
        for path, whose in named.items():
            (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{path}: ")]
            assert whose in line
    assert in_queue(ayse) == before
    assert not [path for path in shared.rglob("*") if path.lstat().st_uid == AYSE and path.name != "open"]


# -- what he links -----------------------------------------------------------------------------------------------

LINKED = [
    "run.yaml", "history.csv", "progress.json", "result.json", "submissions.jsonl", "plots", "logs", "tensorboard",
    "logs/7_0_log.out", "plots/learning_curves.png", "checkpoints", "lr_find_find.json", "model.keras", "workers",
]  # fmt: skip


def test_his_links_into_her_files_are_not_followed(cluster: Cluster, ayse: Truba, shared: Path) -> None:
    secret = ayse.project / "private"
    as_user(
        cluster, "ayse",
        """
        secret, = more
        secret.mkdir(mode=0o700)
        for name in ("x_0_log.out", "a.png", "events.out.tfevents.1.x", "submissions.jsonl"):
            (secret / name).write_text('{"secret": "hunter2"}')
        for mine in (shared / "mine-00000000", secret / "mine-00000000"):
            run = make_run(RunDir(mine), "9", CONFIG)
            run.checkpoints.mkdir()
            for number in range(3):
                (run.checkpoints / f"checkpoint-{number:06}-000000.ckpt").write_text("hunter2")
        """,
        shared, secret,
    )  # fmt: skip
    kept = sorted(path for path in secret.rglob("*"))
    as_user(
        cluster, "mehmet",
        """
        secret, *linked = more
        for number, place in enumerate(map(str, linked)):
            run = make_run(RunDir(shared / f"his-{number:08}"), "7", CONFIG)
            for_all(run.path)
            at = run.path / place
            if at.exists():
                at.rename(at.with_name("was." + at.name))
            at.symlink_to(secret if place in {"plots", "logs", "tensorboard", "workers"} else
                          secret / "mine-00000000/checkpoints" if place == "checkpoints" else secret / "x_0_log.out")
        (shared / "whole-00000000").symlink_to(secret / "mine-00000000")
        sweep = make_sweep(shared, "swept", 200, CONFIG)
        about = json.loads((sweep.path / "sweep.json").read_text())
        about["runs"][0]["run"] = "../" * 9 + str(secret / "mine-00000000").lstrip("/")
        (sweep.path / "sweep.json").write_text(json.dumps(about))
        for folder in (shared / ".sweeps", *shared.glob("swept-*")):
            for_all(folder)
        """,
        shared, secret, *map(Path, LINKED),
    )  # fmt: skip
    out = ayse.project / "out"
    printed = as_user(
        cluster, "ayse",
        """
        from truba_runner.__main__ import main
        out, = more
        out.mkdir()
        runs = sorted(path.name for path in shared.iterdir() if not path.name.startswith("."))
        for run in [*runs, "swept-sweep"]:
            if run.startswith("mine"):
                continue
            cleaned = ["clean --yes"] if run.startswith(("swept", "whole", "his-00000010")) else []
            for words in ("report --out OUT", "keep --to OUT", "logs", "why", *cleaned):
                print("==", run, words, flush=True)
                try:
                    main([*words.replace("OUT", str(out)).split(), "--runs", str(shared), run])
                except SystemExit as end:
                    assert end.code in {0, 1, 2}, end
        main(["status", "--runs", str(shared)])
        main(["usage", "--runs", str(shared)])
        """,
        shared, out, env=ayse.environment,
    )  # fmt: skip
    assert "hunter2" not in printed and "whole-0000" not in printed.split("==")[-1]
    told = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"mnist" in told and b"hunter2" not in told and b"aHVudGVyMg" not in told
    assert sorted(path for path in secret.rglob("*")) == kept


# -- what he spoils ----------------------------------------------------------------------------------------------

COMMANDS = (
    "status", "status mine", "status --json mine", "logs mine", "why mine", "report --out OUT mine",
    "keep --to OUT mine",
    "usage", "best mine", "diff mine mine", "expiring", "clean", "cancel -y mine", "where mine",
)  # fmt: skip
GIVE_ALL = """
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from truba_runner.__main__ import main
from truba_runner import terminal
out, = more
out.mkdir(exist_ok=True)
told = {}
for words in %r:
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            status = main([*words.replace("OUT", str(out)).split(), "--runs", str(shared)])
        except SystemExit as end:
            status = end.code
    told[words] = status, printed.getvalue()
print(json.dumps(told))
"""


def of_hers(told: str) -> list[str]:
    return [" ".join(line.split()) for line in told.splitlines() if "mine-00000000" in line]


def test_what_he_spoils_takes_no_command_away(cluster: Cluster, ayse: Truba, shared: Path) -> None:
    make = "make_run(RunDir(shared / 'mine-00000000'), '9', CONFIG)"
    as_user(cluster, "ayse", make, shared)
    give = GIVE_ALL % (COMMANDS,)
    before = json.loads(as_user(cluster, "ayse", give, shared, ayse.project / "out", env=ayse.environment))
    as_user(
        cluster, "mehmet",
        r"""
        def spoilt(name, readable=True):
            run = make_run(RunDir(shared / name), "7", CONFIG, finished=False)
            for_all(run.path) if readable else None
            return run.path
        spoilt("secret-00000000", readable=False)
        for record in ("run.yaml", "submissions.jsonl", "progress.json", "history.csv"):
            for how in ("closed", "nested", "pipe", "loop", "folder", "escape", "none"):
                path = spoilt(f"{how}-{record[:4]}0000") / record
                was = path.read_text()
                path.unlink()
                if how == "closed":
                    path.touch(0o000)
                elif how == "nested":
                    path.write_text("[" * 100_000)
                elif how == "pipe":
                    os.mkfifo(path, 0o644)
                elif how == "loop":
                    path.symlink_to(path.name)
                elif how == "folder":
                    path.mkdir()
                elif how == "escape":
                    path.write_text(was.replace("loss", "\\u001b[2J" if path.suffix == ".json" else "\x1b[2J")
                                    .replace("akya", "\x1b]0;pwned\x07").replace('"no"', '"\\u001b[31m"'))
        log, = (spoilt("loud-00000000") / "logs").iterdir()
        log.write_text("\x1b]0;pwned\x07\x9b2J\n")
        spoilt("\x1b[31mred-00000000")
        (shared / "file-00000000").touch()
        os.mkfifo(shared / "pipe-00000000")
        (shared / "loop-00000000").symlink_to("loop-00000000")
        """,
        shared,
    )  # fmt: skip
    after = json.loads(as_user(cluster, "ayse", give, shared, ayse.project / "out", env=ayse.environment))
    for words in COMMANDS:
        assert after[words][0] == before[words][0], (words, after[words])
        assert of_hers(after[words][1]) == of_hers(before[words][1]), words
        assert "Traceback" not in after[words][1] and "\x1b[31" not in after[words][1], words
        assert not {"\x1b]", "\x07", "\x9b"} & {a + b for a, b in itertools.pairwise(after[words][1])}, words
    assert after["status"][1].count("DAMAGED") >= 10
    loud = ayse("logs", "loud", "--runs", str(shared))
    assert loud.returncode == 0 and loud.stdout == "\\x1b]0;pwned\\x07\\x9b2J\n"


# -- what he gets hold of while it waits ---------------------------------------------------------------------------


def test_a_job_in_the_queue_runs_none_of_his_code(cluster: Cluster, ayse: Truba, shared: Path) -> None:
    ayse.write("bin/sbatch", '#!/bin/bash\nexec /usr/bin/sbatch --hold "$@"\n', True)
    (shared / "ran").mkdir()
    (shared / "ran").chmod(0o777)
    for seed in (1, 2):
        done = ayse(*command(shared, f"train.seed={seed}"), PATH=ayse.path_with_own_bin())
        assert done.returncode == 0, done.stderr
    jobs = in_queue(ayse)
    opened, own = (shared / jobs[job_id].rpartition(".")[0] for job_id in sorted(jobs, key=int))
    as_user(cluster, "ayse", "more[0].chmod(0o777)", shared, opened)
    as_user(
        cluster, "mehmet",
        r"""
        opened, = more
        code = f"import os\nopen('{shared}/ran/' + f'{{os.getuid()}}-{{os.getpid()}}', 'w').write(__file__)\n"
        for folder in (shared, opened):
            (folder / "truba_runner").mkdir()
            for name in ("truba_runner/__init__.py", "subprocess.py", "traceback.py", "usercustomize.py"):
                (folder / name).write_text(code)
                (folder / name).chmod(0o644)
            (folder / "truba_runner").chmod(0o755)
        for name in ("submissions.jsonl", "run.yaml"):
            (opened / name).rename(opened / f"was.{name}")
            (opened / name).write_text(json.dumps({"event": "intent", "job_file": str(opened / "traceback.py")}))
        """,
        shared, opened,
    )  # fmt: skip
    cluster.run(["scontrol", "release", *jobs], user="ayse")
    wait_until(lambda: not in_queue(ayse), lambda: [in_queue(ayse), *opened.rglob("*"), *own.rglob("*")], 60)
    assert list((shared / "ran").iterdir()) == []
    (log,) = (opened / "logs").iterdir()
    assert "others may write to it (owner ayse, mode 0777)" in log.read_text()
    assert cluster.states(log.name.partition("_")[0]) == ["FAILED"]
    assert RunDir(own).result()


# -- what he holds -------------------------------------------------------------------------------------------------

HOLDS = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
SOON_OVER = """
import sys
from truba_runner.storage import folder_lock
folder_lock.lock.__wrapped__.__defaults__ = (3.5,)
from truba_runner.__main__ import main
sys.exit(main())
"""


def test_a_lock_that_he_holds_is_not_waited_for_for_ever(cluster: Cluster, ayse: Truba, shared: Path) -> None:
    lock = shared / ".lock"
    as_user(cluster, "ayse", "(shared / '.lock').touch(); (shared / '.lock').chmod(0o644)", shared)
    with cluster.popen([sys.executable, "-c", HOLDS, str(lock)], user="mehmet", stdin=PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        began = time.monotonic()
        done = ayse(*command(shared), program=["-c", SOON_OVER])
        assert 3.5 < time.monotonic() - began < 20
        assert done.returncode == 1 and f"waiting for the lock {lock}, which is held by" in done.stderr, done.stderr
        assert f"The lock {lock} was not released within" in done.stderr
        assert holder.stdin is not None
        holder.stdin.close()
