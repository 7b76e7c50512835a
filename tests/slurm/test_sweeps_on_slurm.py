"""Sweeps on the real Slurm: hundreds of runs, some of which fail or are killed; canaries; several runs in one job."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from slow_run import SETTINGS, SLOW_JOB
from truba import ROOT, Truba, events, run_dirs

_names = (f"sweep{number}" for number in itertools.count())

# A backend that trains in milliseconds where Keras takes ten seconds to be imported: one weight goes down a parabola, a
# step every `pause` seconds. It saves, resumes and is interrupted as the others are.
BACKEND = """
import json, random, time
from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.training.interrupt import Interrupted

STEPS = 5


def train(context):
    seed, rate = context.experiment.train.seed, context.experiment.train.learning_rate
    store = CheckpointStore(context.run.checkpoints)
    found = store.newest(lambda file: json.loads(file.read()[:-32] or b"null"))
    position, state = found or (Position(0, 0), {"weight": random.Random(seed).uniform(1, 2), "rows": []})
    context.interruption.hold()
    context.progress.update(steps_per_epoch=STEPS)
    save = lambda epoch, step: store.save(Position(epoch, step), lambda file: file.write(json.dumps(state).encode()))
    for epoch in range(position.epoch, context.experiment.train.epochs):
        for step in range(position.step if epoch == position.epoch else 0, STEPS):
            context.job.step(seed, rate, epoch, step)
            state["weight"] -= rate * 2 * state["weight"]
            context.progress.step(epoch + 1, step + 1, {"loss": state["weight"] ** 2})
            if context.interruption.requested:
                save(epoch, step + 1)
                raise Interrupted
        loss = state["weight"] ** 2
        state["rows"].append({"epoch": epoch + 1, "loss": loss, "val_loss": loss})
        save(epoch + 1, 0)
        context.run.write_history(state["rows"])
        context.progress.epoch_end(epoch + 1, STEPS, {"loss": loss, "val_loss": loss})
    return {"metrics": {"val_loss": loss}, "steps": STEPS, "weights_sha256": repr(state["weight"])}
"""
REGISTERED = """
import os
import truba_runner.training
from truba_runner.config import backends
backends.TRAITS["tiny"] = backends.Traits(task_per_gpu=False, multi_node=False)
truba_runner.training.__path__.append(os.path.dirname(__file__))
"""
QUICK_JOB = "def step(*where):\n    pass\n"


@pytest.fixture
def truba(cluster: Cluster) -> Iterator[Truba]:
    """A project with a backend of its own; what it leaves in the queue is cancelled."""
    made = Truba(cluster, next(_names))
    cluster.run(["mkdir", "-p", str(made.project / "site" / "tiny")])
    made.write("site/sitecustomize.py", REGISTERED)
    made.write("site/tiny/train.py", BACKEND)
    made.write("jobs/quick.py", QUICK_JOB)
    made.environment["PYTHONPATH"] = f"{ROOT}:{made.project / 'site'}"
    yield made
    for job_id in {job_id.split("_")[0] for job_id in made.jobs(f"{made.project.name}-")}:
        cluster.run(["scancel", job_id], check=False)


def command(truba: Truba, *more: str, job: str = "quick") -> list[str]:
    own = [f"name={truba.project.name}", f"job.module={job}", "job.backend=tiny", "train.learning_rate=0.1"]
    return ["-m", "+experiment=mnist", *own, "data.name=digits", "train.epochs=2", truba.runs_folder(), *more]


def sweeps(truba: Truba) -> list[str]:
    return [path.name for path in (truba.project / "runs" / ".sweeps").iterdir()]


def sweep_of(truba: Truba) -> str:
    (name,) = sweeps(truba)
    return name


def table(truba: Truba, *more: str, sweep: str = "") -> dict[str, Any]:
    done = truba("status", sweep or sweep_of(truba), "--json", *more)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def states(truba: Truba, sweep: str = "") -> Counter[str]:
    return Counter(row["state"] for row in table(truba, sweep=sweep)["runs"])


def arrays(truba: Truba) -> set[str]:
    """Ids of all that was ever submitted."""
    told = (event for run in run_dirs(truba.project) for event in events(run) if event["event"] == "submitted")
    return {event["job_id"].split("_")[0] for event in told}


def wait_until(condition: Callable[[], bool], seconds: float = 200, every_seconds: float = 0.2) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(every_seconds)


def submit(truba: Truba, *arguments: str) -> str:
    done = truba(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def starts(truba: Truba) -> Counter[str]:
    """How often each run was started."""
    return Counter(run.name for run in run_dirs(truba.project) for event in events(run) if event["event"] == "started")


def test_two_hundred_runs_of_which_ten_fail_and_ten_are_killed(truba: Truba) -> None:
    # Ten raise, ten wait to be killed, as long as the file is there.
    truba.write("broken", "")
    truba.write(
        "jobs/quick.py",
        "import pathlib, time\n"
        f"broken = pathlib.Path({str(truba.project / 'broken')!r})\n"
        "def step(seed, rate, epoch, step):\n"
        "    if broken.exists() and rate == 0.1 and seed < 10:\n"
        "        raise RuntimeError('failing on purpose')\n"
        "    while broken.exists() and rate == 0.1 and seed < 20 and epoch == 1:\n"
        "        time.sleep(0.1)\n",
    )
    sweep = command(truba, "train.seed=range(100)", "train.learning_rate=0.1,0.01", "sweep.max_parallel=30")
    assert "200 runs, 200 submitted" in submit(truba, *sweep)
    (array,) = arrays(truba)
    # Asked of Slurm, and not too often: the runs have the same two cores.
    wait_until(lambda: Counter(truba.cluster.states(array)) == {"COMPLETED": 180, "FAILED": 10, "RUNNING": 10}, 240, 1)
    waiting = [row for row in table(truba)["runs"] if row["state"] == "RUNNING"]
    truba.cluster.run(["scancel", *(row["job_id"] for row in waiting)])
    wait_until(lambda: truba.cluster.states(array).count("CANCELLED") == 10)
    shown = truba("status", sweep_of(truba)).stdout
    assert "200 runs, 180 COMPLETED, 10 FAILED, 10 CANCELLED" in shown and "RuntimeError: failing on purpose" in shown

    before = starts(truba)
    (truba.project / "broken").unlink()
    again = submit(truba, *sweep)
    assert "180 finished before" in again and "20 submitted" in again
    (second,) = arrays(truba) - {array}
    truba.cluster.wait_for_state(second, "COMPLETED", timeout=240)
    values = {row["run"]: row["values"] for row in table(truba)["runs"]}
    missing = {run for run, of in values.items() if of["train.seed"] < 20 and of["train.learning_rate"] == 0.1}
    assert (
        states(truba) == {"COMPLETED": 200}
        and len(missing) == 20
        and {run for run, count in (starts(truba) - before).items() if count} == missing
    )
    assert "200 finished before" in submit(truba, *sweep)
    check_table(truba)
    check_files(truba)


def check_table(truba: Truba) -> None:
    """Every figure is that of a run's own history, however the table is shown."""
    rows = table(truba, "--sort", "val_loss")["runs"]
    for row in rows:
        with (Path(row["directory"]) / "history.csv").open(newline="") as file:
            losses = [float(epoch["val_loss"]) for epoch in csv.DictReader(file)]
        assert (row["last"], row["best"]) == (losses[-1], min(losses)) and len(losses) == 2
    assert [row["best"] for row in rows] == sorted(row["best"] for row in rows)
    (best,) = table(truba, "--best", "val_loss")["runs"]
    assert best == rows[0] and best["values"]["train.learning_rate"] == 0.1
    seeds = table(truba)["over_seeds"]
    assert [group["values"] for group in seeds] == [{"train.learning_rate": 0.1}, {"train.learning_rate": 0.01}]
    for group in seeds:
        own = [row["last"] for row in rows if row["values"].items() >= group["values"].items()]
        assert group["runs"] == 100 and group["last"]["mean"] == pytest.approx(sum(own) / 100)
        assert (group["last"]["least"], group["last"]["most"]) == (min(own), max(own))
    printed = list(csv.DictReader(io.StringIO(truba("status", sweep_of(truba), "--csv").stdout)))
    assert len(printed) == 200 and {row["state"] for row in printed} == {"COMPLETED"}
    drawn = truba("status", sweep_of(truba), "--plot")
    assert drawn.returncode == 0 and Path(drawn.stdout.strip()).read_bytes().startswith(b"\x89PNG")
    listed = truba("status").stdout
    assert "200 COMPLETED" in listed and len(listed.splitlines()) == 2


def check_files(truba: Truba) -> None:
    """No run leaves an empty log beside its own; those that were cancelled have Slurm's word for it."""
    logs = truba.project / "runs" / ".sweeps" / sweep_of(truba) / "logs"
    assert all(path.stat().st_size for path in logs.iterdir())
    for run in run_dirs(truba.project):
        assert sum(path.is_file() for path in run.rglob("*")) <= 12


def test_one_wrong_value_refuses_every_run_and_is_named(truba: Truba) -> None:
    refused = truba(*command(truba, "train.seed=range(20)", "train.learning_rate=0.1,-1", "resources.gpus=1,9"))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "train.learning_rate=-1.0: it must be positive." in refused.stderr
    assert "40 of 80 runs are affected: train.learning_rate=-1 train.seed=0 resources.gpus=1; " in refused.stderr
    assert "resources.gpus=9: a node of akya-cuda has 4 GPUs." in refused.stderr
    refused = truba(*command(truba, "train.seed=1,two,3"))
    assert (
        refused.returncode == 2
        and "train.seed" in refused.stderr
        and "1 of 3 runs are affected: train.seed=two" in refused.stderr
    )
    elsewhere = f"cluster.runs_folder={truba.project / 'runs'},{truba.project / 'others'}"
    refused = truba(*command(truba, elsewhere))
    assert refused.returncode == 2 and "a sweep has one cluster and one folder" in refused.stderr
    assert not (truba.project / "runs").exists() and not truba.jobs(truba.project.name)


def test_arrays_for_each_set_of_resources_no_larger_than_slurm_takes(truba: Truba) -> None:
    truba.write("jobs/quick.py", "import time\ndef step(*where):\n    time.sleep(60)\n")
    names = f"name={truba.project.name}-1,{truba.project.name}-2"
    limits = ["cluster.max_array_size=4", "sweep.max_parallel=8"]
    submit(truba, *command(truba, "train.seed=range(3)", names, "resources.gpus=1,2", "++train.epochs=2", *limits))
    submit(truba, *command(truba, "train.seed=range(10,14)", "train.learning_rate=0.1,0.2", *limits))
    sizes = Counter(events(run)[1]["job_id"].split("_")[0] for run in run_dirs(truba.project))
    assert sorted(sizes.values()) == [2, 4, 4, 4]
    shown = {job_id: truba.cluster.run(["scontrol", "show", "job", job_id]).stdout for job_id in sizes}
    # Two arrays at a time have a share of what may run at once.
    assert all("ArrayTaskThrottle=4" in told for job_id, told in shown.items() if sizes[job_id] == 4)


def test_a_canary_that_lives_lets_the_others_go(truba: Truba) -> None:
    truba.write("jobs/quick.py", WAITING.format(project=truba.project))
    submit(truba, *command(truba, "train.seed=range(3)", "sweep.canary=true"))
    canary, *others = table(truba)["runs"]
    wait_until(lambda: table(truba)["runs"][0]["state"] == "RUNNING")
    for row in table(truba)["runs"][1:]:
        assert row["state"] == "PENDING" and row["why"] == f"held until {canary['run']} finishes its first epoch"
    assert "3 in the queue or running already" in submit(
        truba, *command(truba, "train.seed=range(3)", "sweep.canary=true")
    )
    truba.write("go", "")
    wait_until(lambda: states(truba) == {"COMPLETED": 3})
    assert all(min(starts(truba).values()) == 1 for _ in others)


WAITING = """
import pathlib, time
def step(*where):
    while not pathlib.Path("{project}/go").exists():
        time.sleep(0.05)
"""


def test_a_canary_that_fails_takes_the_others_along_and_the_next_one_frees_them(truba: Truba) -> None:
    truba.write("jobs/quick.py", "def step(*where):\n    raise RuntimeError('bad code')\n")
    sweep = command(truba, "train.seed=range(3)", "sweep.canary=true")
    submit(truba, *sweep)
    wait_until(lambda: states(truba) == {"FAILED": 1, "CANCELLED": 2})
    canary, other, _ = table(truba)["runs"]
    assert other["why"] == f"the canary {canary['run']} failed: RuntimeError: bad code"
    truba.write("jobs/quick.py", QUICK_JOB)
    assert "3 submitted" in submit(truba, *sweep)
    wait_until(lambda: states(truba) == {"COMPLETED": 3})


def test_a_canary_whose_python_never_starts_takes_the_others_along(truba: Truba) -> None:
    sweep = command(truba, "train.seed=range(3)", "sweep.canary=true")
    # On the login node it works.
    line = '[ -z "$SLURM_JOB_ID" ] || exit 3'
    submit(truba, *sweep, f"environment.setup=['{line}']")
    wait_until(lambda: states(truba) == {"FAILED": 1, "CANCELLED": 2})
    # Accounting has heard of the exit code a moment later.
    reason = f"environment.setup: exit status 3: {line}"
    wait_until(lambda: table(truba)["runs"][0]["why"] == reason, 240)
    canary, other, _ = table(truba)["runs"]
    assert canary["why"] == reason and other["why"].startswith(f"cancelled because the canary {canary['run']}")
    # The environment is no part of what a run is.
    assert "3 submitted" in submit(truba, *sweep)
    wait_until(lambda: states(truba) == {"COMPLETED": 3})


def test_runs_that_share_a_job_fail_by_themselves_and_go_on_exactly_with_the_code_that_was_submitted(
    truba: Truba,
) -> None:
    helper = truba.write("helper.py", "import pathlib\n")
    truba.write(
        "jobs/quick.py",
        "import os, signal, time\n"
        "from helper import pathlib\n"
        "def step(seed, rate, epoch, step):\n"
        "    pathlib.Path('visible').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', ''))\n"
        "    if seed == 1:\n"
        "        raise RuntimeError('bad seed')\n"
        # Those that share a job wait in it for the signal, once.
        "    first = os.environ['SLURM_JOB_NAME'].startswith('sweep') and 'SLURM_RESTART_COUNT' not in os.environ\n"
        "    while first and epoch == 2 and not signal.getsignal(signal.SIGUSR2).__self__.requested:\n"
        "        time.sleep(0.05)\n",
    )
    alone = command(truba, "train.seed=0,2,3", "train.epochs=4", "name=alone")
    packed = command(truba, "train.seed=range(4)", "train.epochs=4", "sweep.pack=4")
    submit(truba, *packed)
    packed_runs = [truba.project / "runs" / run.name for run in run_dirs(truba.project)]
    by_seed = {json_seed(run): run for run in packed_runs}
    (job_id,) = {events(run)[1]["job_id"] for run in packed_runs}
    assert "gres/gpu=4" in truba.cluster.run(["scontrol", "show", "job", job_id]).stdout
    wait_until(
        lambda: (
            progress(by_seed[1]).get("state") == "failed"
            and all(progress(by_seed[seed]).get("epoch", 0) >= 2 for seed in (0, 2, 3))
        )
    )
    rows = {row["values"]["train.seed"]: row for row in table(truba)["runs"]}
    assert rows[1]["state"] == "FAILED" and "bad seed" in rows[1]["why"] and rows[0]["state"] == "RUNNING"
    submitted = helper.read_text()
    truba.write("helper.py", "raise RuntimeError('edited while it is trained')\n")
    # One is killed without a word; the others are told to save, and all of them go on together.
    os.kill(progress_pid(by_seed[3]), signal.SIGKILL)
    truba.cluster.run(["scancel", "--signal=USR2", job_id])
    wait_until(lambda: all((by_seed[seed] / "result.json").exists() for seed in (0, 2, 3)), 240)
    assert starts(truba) == {by_seed[seed].name: 1 if seed == 1 else 2 for seed in range(4)}
    assert [(by_seed[seed] / "visible").read_text() for seed in range(4)] == ["0", "1", "2", "3"]
    truba.cluster.wait_for_state(job_id, "FAILED", timeout=240)

    truba.write("helper.py", submitted)
    submit(truba, *alone)
    by_seed_alone = {json_seed(run): run for run in run_dirs(truba.project) if run.name.startswith("alone")}
    wait_until(lambda: all((run / "result.json").exists() for run in by_seed_alone.values()))
    for seed in (0, 2, 3):
        one, other = (json.loads((runs[seed] / "result.json").read_text()) for runs in (by_seed, by_seed_alone))
        assert one["weights_sha256"] == other["weights_sha256"] and one["restarts"] == 1 and other["restarts"] == 0
        assert (by_seed[seed] / "history.csv").read_text() == (by_seed_alone[seed] / "history.csv").read_text()


def json_seed(run: Path) -> int:
    import yaml

    return int(yaml.safe_load((run / "run.yaml").read_text())["train"]["seed"])


def progress(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / "progress.json").read_text()))
    except FileNotFoundError:
        return {}


def progress_pid(run: Path) -> int:
    """The worker's process, as this machine counts it: a node has process ids of its own."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if b"truba_runner.worker" in words and os.fsencode(run.name) in words[-2]:
            return int(entry.name)
    raise AssertionError(f"no worker of {run.name}")


# As Optuna's and Ax's do: asks for some runs, looks at what became of them, asks for more.
SWEEPER = """
from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.core.plugins import Plugins

ConfigStore.instance().store(group="hydra/sweeper", name="nevergrad_like", node={"_target_": f"{__name__}.Nevergrad"})


class Nevergrad(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        ask = lambda rates: [[*arguments, f"train.learning_rate={rate}"] for rate in rates]
        values = [one.return_value for one in self.launcher.launch(ask([0.01, 0.1]), 0)]
        rate = [0.02, 0.2][values.index(min(values))]
        (last,) = self.launcher.launch(ask([rate]), 2)
        print(f"found {rate}: {last.return_value:.6f}")
"""


def test_a_sweeper_that_wants_values_waits_here_or_in_a_job(truba: Truba) -> None:
    truba.cluster.run(["mkdir", "-p", str(truba.project / "site/hydra_plugins/nevergrad_like")])
    truba.write("site/hydra_plugins/nevergrad_like/__init__.py", SWEEPER)
    found = [*command(truba)[:1], *(one for one in command(truba)[1:] if "learning_rate" not in one)]
    found += ["hydra/sweeper=nevergrad_like"]
    refused = truba(*found)
    assert refused.returncode == 2 and "sweep.sweeper_partition=PARTITION" in refused.stderr
    assert "found 0.2: " in submit(truba, *found, "launcher.wait=true", "launcher.metric=val_loss")
    rows = table(truba)["runs"]
    assert [row["values"]["train.learning_rate"] for row in rows] == [0.01, 0.1, 0.2]

    in_job = [
        *found,
        "train.seed=7",
        "launcher.metric=val_loss",
        "sweep.sweeper_partition=barbun",
        "sweep.sweeper_time=10m",
    ]
    first = submit(truba, *in_job)
    assert (
        "the sweeper was submitted as job" in first
        and "the sweeper is in the queue or running already, as job" in submit(truba, *in_job)
    )
    sweep = Path(first.split()[-1]).name
    job_id = first.split()[6]
    log = truba.project / "runs" / ".sweeps" / sweep / "sweeper" / "logs" / f"{job_id}_0_log.out"
    wait_until(lambda: log.exists() and "submitted" in log.read_text())
    truba.cluster.run(["scancel", "--signal=TERM", job_id])  # As at a preemption.
    wait_until(lambda: log.exists() and "found 0.2: " in log.read_text())
    # A result may be there before its job has ended.
    wait_until(lambda: states(truba, sweep) == {"COMPLETED": 3})
    assert "Restarts=1" in truba.cluster.run(["scontrol", "show", "job", job_id]).stdout


def test_a_sweep_is_cancelled_as_a_whole_and_a_failed_set_up_shows_in_the_log(truba: Truba) -> None:
    truba.write("jobs/quick.py", WAITING.format(project=truba.project))
    submit(truba, *command(truba, "train.seed=range(4)", "sweep.pack=2"))
    run = table(truba)["runs"][0]["run"]
    wait_until(lambda: states(truba) == {"RUNNING": 4})
    # Those that share a job end together.
    assert truba("cancel", "--yes", run).stdout.count("cancelled") == 2
    wait_until(lambda: states(truba) == {"RUNNING": 2, "CANCELLED": 2})
    assert truba("cancel", "--yes", sweep_of(truba)).stdout.count("cancelled") == 2
    wait_until(lambda: states(truba) == {"CANCELLED": 4})
    assert "CANCELLED" in truba("logs", run).stdout
    first = sweep_of(truba)

    # Tasks that wait for their turn have no row of their own in Slurm's accounting.
    submit(truba, *command(truba, "train.seed=range(20,26)", "sweep.max_parallel=2"))
    waiting = next(sweep for sweep in sweeps(truba) if sweep != first)
    wait_until(lambda: states(truba, waiting) == {"RUNNING": 2, "PENDING": 4})
    assert truba("cancel", "--yes", waiting).stdout.count("cancelled") == 6
    wait_until(lambda: states(truba, waiting) == {"CANCELLED": 6}, 240)

    fails_in_a_job = "environment.setup=['[ -z $SLURM_JOB_ID ] || { echo no such module; exit 3; }']"
    submit(truba, *command(truba, "train.seed=9,10", fails_in_a_job))
    run = next(run for run in run_dirs(truba.project) if json_seed(run) == 9)
    truba.cluster.wait_for_state(events(run)[1]["job_id"], "FAILED")
    assert "no such module" in truba("logs", run.name).stdout


def test_keras_runs_side_by_side_go_on_exactly_and_leave_few_files(truba: Truba) -> None:
    told = truba.project / "told"
    slowly = "            time.sleep(0.08)\n"
    assert slowly in SLOW_JOB
    truba.write(
        "jobs/slow.py",
        SLOW_JOB.replace(slowly, f"            wait_in_second_epoch()\n{slowly}")
        + f"""
import itertools, os
CALLS = itertools.count()

def wait_in_second_epoch():
    first = "-alone-" not in os.environ["SLURM_JOB_NAME"] and "SLURM_RESTART_COUNT" not in os.environ
    while first and next(CALLS) > 30 and not os.path.exists({str(told)!r}):
        time.sleep(0.05)
""",
    )
    # With all that a run leaves, pictures too.
    settings = [one for one in SETTINGS if one != "finish.plots=false"]
    own = ["-m", "+experiment=mnist", *settings, truba.runs_folder(), "train.seed=range(2)"]
    submit(truba, *own, f"name={truba.project.name}", "sweep.pack=2")
    packed = {json_seed(run): run for run in run_dirs(truba.project)}
    submit(truba, *own, f"name={truba.project.name}-alone")
    alone = {json_seed(run): run for run in run_dirs(truba.project) if "-alone-" in run.name}
    wait_until(lambda: all((run / "history.csv").exists() for run in packed.values()), 250)
    (job_id,) = {events(run)[1]["job_id"] for run in packed.values()}
    # One is killed without a word; the other is told to save, and the job goes back for both.
    os.kill(progress_pid(packed[1]), signal.SIGKILL)
    truba.cluster.run(["scancel", "--signal=USR2", job_id])
    truba.write("told", "")
    wait_until(lambda: all((run / "result.json").exists() for run in (*packed.values(), *alone.values())), 350, 1)
    truba.cluster.wait_for_state(job_id, "COMPLETED", timeout=240)
    digests = set()
    for seed, run in packed.items():
        files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        assert len(files) <= 12, sorted(files)
        assert {"checkpoints/best.ckpt", "model.keras", "tensorboard/events.out.tfevents.0000000001.hparams"} <= files
        result, other = (json.loads((one / "result.json").read_text()) for one in (run, alone[seed]))
        assert result["weights_sha256"] == other["weights_sha256"] and result["metrics"] == other["metrics"]
        assert (result["restarts"], other["restarts"]) == (1, 0)
        digests.add(result["weights_sha256"])
    assert len(digests) == 2
    (group,) = table(truba, sweep=next(name for name in sweeps(truba) if "-alone-" not in name))["over_seeds"]
    assert group["runs"] == 2 and group["best"]["spread"] > 0


EARLY_AND_LATE = """
import signal, sys

class Late:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGUSR2):
        kill(process, number)

if {"truba_runner.worker", "truba_runner.sweeps.task"} & set(sys.orig_argv):
    mark = f"PROJECT/early-{os.path.basename(sys.orig_argv[-1])}"
    if not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGTERM if "terminated" in mark else signal.SIGUSR2)
    sys.late = Late()
"""


def test_a_signal_before_a_worker_listens_or_while_it_ends_costs_nothing(truba: Truba) -> None:
    # A worker alone, two that share a job, and the process that starts those.
    truba.write("site/sitecustomize.py", REGISTERED + EARLY_AND_LATE.replace("PROJECT", str(truba.project)))
    for name in ("signalled", "terminated"):
        submit(truba, *command(truba)[1:], f"name={name}")
        submit(truba, *command(truba, "train.seed=1,2", "sweep.pack=2", f"name={name}"))
    for job_id in {str(events(run)[1]["job_id"]).split("_")[0] for run in run_dirs(truba.project)}:
        truba.cluster.wait_for_state(job_id, "COMPLETED")
    assert set(starts(truba).values()) == {1} and len(list(truba.project.glob("early-*"))) == 8


def test_a_killed_task_goes_back_alone_and_what_is_finished_is_not_trained_again(truba: Truba) -> None:
    # The last task of an array to start has the array's own number.
    truba.write(
        "jobs/quick.py",
        "import os, signal, time\n"
        "def step(seed, rate, epoch, step):\n"
        "    if seed == 2 and 'SLURM_RESTART_COUNT' not in os.environ:\n"
        "        while sum(os.path.exists(f'../{one}/result.json') for one in os.listdir('..')) < 2:\n"
        "            time.sleep(0.05)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    submit(truba, *command(truba, "train.seed=range(3)"))
    runs = {json_seed(run): run for run in run_dirs(truba.project)}
    ids = {seed: str(events(run)[1]["job_id"]) for seed, run in runs.items()}
    array = ids[2].split("_")[0]
    truba.cluster.wait_for_state(array, "COMPLETED")
    assert starts(truba) == {runs[0].name: 1, runs[1].name: 1, runs[2].name: 2}
    told = truba.cluster.run(["sacct", "-nPXD", "-o", "JobID,State", "-j", array]).stdout.split()
    assert [line for line in told if "REQUEUED" in line] == [f"{ids[2]}|REQUEUED"]

    results = {seed: (run / "result.json").read_bytes() for seed, run in runs.items()}
    truba.cluster.run(["scontrol", "requeue", array], user="root")
    wait_until(lambda: set(truba.cluster.states(array)) != {"COMPLETED"})
    truba.cluster.wait_for_state(array, "COMPLETED")
    assert {seed: (run / "result.json").read_bytes() for seed, run in runs.items()} == results
    assert sum(starts(truba).values()) == 4


def test_a_run_that_is_cancelled_while_it_saves_stays_out_of_the_queue(truba: Truba) -> None:
    # After Slurm's early signal each is in the middle of a step, and then saves to go back into the queue. Of two that
    # share a job one has saved before the job is cancelled.
    truba.write(
        "jobs/quick.py",
        "import os, time\n"
        "def step(seed, *where):\n"
        "    open('in-a-step', 'w').close()\n"
        f"    while not os.path.exists(f'{truba.project}/end-{{seed}}'):\n"
        "        time.sleep(0.02)\n",
    )
    submit(truba, *command(truba)[1:])
    submit(truba, *command(truba, "train.seed=1,2", "sweep.pack=2", "name=packed"))
    runs = run_dirs(truba.project)
    job_ids = {str(events(run)[1]["job_id"]) for run in runs}
    wait_until(lambda: all((run / "in-a-step").exists() for run in runs))
    truba.cluster.run(["scancel", "--signal=USR2", *job_ids])
    logs = [next((run / "logs").iterdir()) for run in runs]
    wait_until(lambda: all("time limit is near" in log.read_text() for log in logs))
    truba.write("end-1", "")
    saved = next(run for run in runs if json_seed(run) == 1)
    wait_until(lambda: events(saved)[-1]["event"] == "requeued")
    truba.cluster.run(["scancel", *job_ids])
    for seed in (0, 2):
        truba.write(f"end-{seed}", "")
    for job_id in job_ids:
        truba.cluster.wait_for_state(job_id, "CANCELLED", in_accounting=True)
    assert {row["state"] for row in truba.status()} == {"CANCELLED"} and set(starts(truba).values()) == {1}
