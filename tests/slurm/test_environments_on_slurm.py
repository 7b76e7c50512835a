"""Jobs whose Python is not the one that submits: in a real container, of a real module, with the one file."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import POLL_SECONDS
from truba import ROOT, Truba, events, run_dirs

from truba_runner.code import bundle
from truba_runner.runs.run_directory import RunDir

PLAIN = ROOT / "tests" / "plain_backend"
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER = "3.13" if HERE != "3.13" else "3.11"
EXPERIMENT = """
# @package _global_
name: tiny
job: {module: tiny, backend: plain}
data: {name: none}
"""
# The backend of these tests, beside what the job finds by itself.
PYTHON = f"env PYTHONPATH=$PYTHONPATH:{PLAIN} python3"
PYZ = ["truba.pyz"]


@pytest.fixture
def bundled(truba: Truba, software: Path) -> Truba:
    """A project whose program is the one file, and whose environments are `image` and `modules`."""
    (truba.project / "truba.pyz").write_bytes(bundle.content(pinned=False))
    truba.environment["PYTHONPATH"] = f"{truba.project / 'truba.pyz'}:{PLAIN}"
    truba.environment["MODULEPATH"] = str(software / "modules")
    for folder in ("conf/experiment", "conf/environment"):
        (truba.project / folder).mkdir(parents=True)
    truba.write("conf/experiment/tiny.yaml", EXPERIMENT)
    truba.write("jobs/tiny.py", "")
    image = {"kind": "apptainer", "image": str(software / "images" / f"python{OTHER}.sif"), "binds": [str(PLAIN)]}
    image["apptainer"] = str(software / "bin" / "apptainer")
    write_environment(truba, "image", **image, python=PYTHON)
    write_environment(truba, "modules", kind="module", modules=["apps/truba-ai/gpu-2024.0"], python=PYTHON)
    return truba


def write_environment(truba: Truba, name: str, **values: object) -> None:
    truba.write(f"conf/environment/{name}.yaml", json.dumps({"name": name, **values}))


def submit(truba: Truba, *arguments: str, **variables: str) -> str:
    done = truba(*arguments, truba.runs_folder(), program=PYZ, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def started(run: Path) -> list[dict[str, Any]]:
    return [event for event in events(run) if event["event"] == "started"]


def wait_for_results(truba: Truba, runs: list[Path]) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 240
    while not all((run / "result.json").exists() for run in runs):
        failed = [row["run"] for row in truba.status() if row["state"] == "FAILED"]
        assert not failed and time.monotonic() < deadline, truba("logs", (failed or [runs[0].name])[0]).stdout
        time.sleep(10 * POLL_SECONDS)
    return [RunDir(run).result() for run in runs]


def array_of(truba: Truba, environment: str, count: int) -> list[Path]:
    said = submit(truba, "-m", "+experiment=tiny", f"train.seed=range({count})", f"environment={environment}")
    assert f"submitted {count} jobs as array" in said and "Python 3." in said
    return run_dirs_with_runs(truba)


def run_dirs_with_runs(truba: Truba) -> list[Path]:
    return [path for path in run_dirs(truba.project) if (path / "submissions.jsonl").exists()]


def test_an_array_of_twenty_in_a_container_of_another_python(bundled: Truba) -> None:
    runs = array_of(bundled, "image", 20)
    job_id = bundled.jobs("tiny-x20")
    assert len({job.split("_")[0] for job in job_id}) == 1, "one array"
    results = wait_for_results(bundled, runs)
    assert {start["python"].rpartition(".")[0] for run in runs for start in started(run)} == {OTHER}
    assert len({result["weights_sha256"] for result in results}) == len(runs) == 20
    # All that a thousand runs would share: the package, the wrapper and the project's code; and of the program itself a
    # few dozen files.
    assert len(list((bundled.project / "runs" / ".code").iterdir())) == 3
    assert sum(path.is_file() for path in (bundled.project / "state").rglob("*")) < 100


def test_a_run_in_a_container_goes_back_into_the_queue_and_ends_as_if_nothing_had_been(bundled: Truba) -> None:
    # Slurm's signal at its first start, through the shell and Apptainer; a kill of the Python inside at its second.
    broken = ["+job.options.pause=1", "drill.kill_at_step=10"]
    submit(bundled, "+experiment=tiny", "environment=image", "train.epochs=3", "name=calm")
    submit(bundled, "+experiment=tiny", "environment=image", "train.epochs=3", *broken)
    calm, run = run_dirs_with_runs(bundled)
    assert calm.name.startswith("calm")
    job_id = events(run)[-1]["job_id"]
    while not (run / "progress.json").exists() or RunDir(run).progress().step is None:
        time.sleep(POLL_SECONDS)
    bundled.cluster.run(["scancel", "--signal=USR2", job_id])
    interrupted, undisturbed = wait_for_results(bundled, [run, calm])
    assert interrupted["requeues"] == 1 and interrupted["restarts"] == 2
    assert interrupted["weights_sha256"] == undisturbed["weights_sha256"]
    assert len(started(run)) == 3


ASKS = """
import json, os, subprocess, sys
from truba_runner.slurm import client, jobs
names = [name for name in os.environ if name.startswith(("SLURM_PROCID", "OWN_", "SECRET", "TF_"))]
told = {name: os.environ[name] for name in names}
told["python"] = sys.version
told["job"] = jobs.state(os.environ["SLURM_JOB_ID"])
try:
    client.run(["scontrol", "show", "job", "999999"])
except client.SlurmError as error:
    told["error"] = error.message
try:
    client.run(["touch", "/tmp/should-not-be"])
except client.SlurmError:
    told["touch"] = "refused"
print(json.dumps(told))
sys.exit(3 if os.environ["SLURM_PROCID"] == "1" else 0)
"""


def test_the_wrapper_serves_each_task_of_a_step(bundled: Truba, software: Path) -> None:
    bundled.write("asks.py", ASKS)
    image, apptainer = software / "images" / f"python{OTHER}.sif", software / "bin" / "apptainer"
    wrapper = f"bash {ROOT}/container/apptainer --apptainer {apptainer} --image {image} --pass 'OWN_*' --bind {ROOT}"
    project = bundled.project
    job_id = bundled.cluster.sbatch(
        ["-p", "akya-cuda", "-N", "2", "-n", "4", "-c", "5", "--gres=gpu:1", "-t", "5", "-A", "ayse",
         f"--output={project}/out-batch"],
        f"export PYTHONPATH={project}/truba.pyz OWN_NAME='a, \"b\"\n$c' TF_X=1 SECRET=no\ncd {project}\n"
        f"srun --output={project}/out-%t -c 5 {wrapper} --bind {project}:{project}:ro --bind /no/such/folder "
        f"-- python3 {project}/asks.py",
    )  # fmt: skip
    bundled.cluster.wait_for_state(job_id, "FAILED", in_accounting=True)
    answers = [json.loads((project / f"out-{task}").read_text().splitlines()[0]) for task in range(4)]
    for rank, told in enumerate(answers):
        assert told["SLURM_PROCID"] == str(rank) and told["python"].startswith(OTHER)
        assert told["OWN_NAME"] == 'a, "b"\n$c' and told["TF_X"] == "1" and "SECRET" not in told
        assert told["job"] == "RUNNING" and "Invalid job id" in told["error"] and told["touch"] == "refused"
    assert "exit code 3" in (project / "out-batch").read_text()


# Two of the package's jobs, with a module beside them that tells where it is used: in a rank, in a process that reads.
KERAS_JOB = "import helper\nfrom mnist import *\n\nhelper.tell('keras')\n"
FASTAI_JOB = """
import helper
import pets
from fastai.vision.all import PILImage, Resize, Transform
from pets import build_learner, load_items


class Telling(Transform):
    def encodes(self, image: PILImage):
        helper.tell("fastai")
        return image


def data_block(items, item_size=40, **options):
    return pets.data_block(items, **options).new(item_tfms=[Telling(), Resize(item_size)])
"""
HELPER = """
import os, socket

def tell(what):
    with open("told", "a") as file:
        file.write(f"{what} {socket.gethostname()} {os.getpid()}\\n")
"""


def test_keras_on_two_nodes_in_a_container_and_fastai_of_a_virtual_environment_train_what_was_submitted(
    bundled: Truba, software: Path
) -> None:
    image = software / "images" / f"python{HERE}.sif"
    if not image.exists():
        pytest.skip(f"no image has Python {HERE}, which the frameworks here are for")
    tensorflow = importlib.metadata.distribution("tensorflow")
    packages, project = str(tensorflow.locate_file("")), bundled.project
    apptainer = str(software / "bin" / "apptainer")
    bound = [f"{packages}:/usr/local/lib/python{HERE}/dist-packages:ro"]
    write_environment(bundled, "keras", kind="apptainer", image=str(image), binds=bound, apptainer=apptainer)
    bundled.cluster.run([sys.executable, "-m", "venv", "--without-pip", str(project / "venv")])
    bundled.write(f"venv/lib/python{HERE}/site-packages/more.pth", packages)
    for name in ("mnist", "pets", "_photograph_crops"):
        bundled.write(f"jobs/{name}.py", (ROOT / "jobs" / f"{name}.py").read_text())
    for name, text in {"helper.py": HELPER, "jobs/own_keras.py": KERAS_JOB, "jobs/own_fastai.py": FASTAI_JOB}.items():
        bundled.write(name, text)
    bundled.environment["PYTHONPATH"] = str(project / "truba.pyz")
    bundled.write("bin/sbatch", '#!/bin/sh\nexec /usr/bin/sbatch --hold "$@"\n', executable=True)
    nodes = ["job.module=own_keras", "data.name=digits", "environment=keras", "resources.nodes=2", "train.epochs=2"]
    small = [
        "job.module=own_fastai", "data.name=crops", f"data.folder={project / 'data'}", "data.workers=2",
        "data.options.size=32", "train.batch_size=8", "job.options.arch=squeezenet1_1", "job.options.pretrained=false",
        "train.epochs=1", "environment=venv", f"environment.venv={project / 'venv'}",
    ]  # fmt: skip
    for command in (["+experiment=mnist", *nodes], ["+experiment=pets", *small]):
        said = submit(bundled, *command, PATH=bundled.path_with_own_bin())
        assert f"Python {HERE}" in said and f"tensorflow {tensorflow.version}" in said
    runs = run_dirs_with_runs(bundled)
    for name in ("helper.py", "jobs/own_keras.py", "jobs/own_fastai.py", "jobs/pets.py", "jobs/mnist.py"):
        bundled.write(name, "raise RuntimeError('edited while it waits')\n")
    bundled.cluster.run(["scontrol", "release", *(events(run)[1]["job_id"] for run in runs)], user="root")
    of_keras, of_fastai = wait_for_results(bundled, runs)
    assert of_keras["metrics"]["test_accuracy"] > 0.8 and of_keras["tasks"] == 2
    told = [[line.split() for line in (run / "told").read_text().splitlines()] for run in runs]
    assert [what for what, _, _ in told[0]] == ["keras"] * 2 and len({node for _, node, _ in told[0]}) == 2
    assert of_fastai["metrics"]["val_error_rate"] < 1 and {what for what, _, _ in told[1]} == {"fastai"}
    assert len({process for _, _, process in told[1]}) >= 2, "processes that read for it"


def test_a_run_of_a_module(bundled: Truba) -> None:
    runs = array_of(bundled, "modules", 2)
    assert len(wait_for_results(bundled, runs)) == 2
    assert {start["python"].rpartition(".")[0] for run in runs for start in started(run)} == {"3.13"}


TELLS = "import json, os\nwith open('variables.json', 'w') as file:\n    json.dump(dict(os.environ), file)\n"


def test_modules_set_up_and_caches_reach_a_job_and_a_line_that_fails_ends_it(bundled: Truba) -> None:
    project = bundled.project
    bundled.cluster.run([sys.executable, "-m", "venv", "--without-pip", str(project / "venv")])
    (project / "modules").mkdir()
    bundled.write("modules/own.lua", 'setenv("OWN_MODULE", "loaded")\n')
    bundled.write("jobs/tiny.py", TELLS)
    # The login shell has no command `module`, as one that cron starts has none.
    before = [f"module use {project}/modules", 'export ORDER="before$OWN_MODULE"']
    lines = {"setup_before": before, "setup": ['export ORDER="$ORDER $OWN_MODULE $VIRTUAL_ENV"']}
    write_environment(bundled, "own", kind="venv", venv=str(project / "venv"), modules=["own"], **lines)
    # The check before the submission passes it.
    failing = "case $SLURM_JOB_NAME in wrong*) conda activate nothing ;; esac"
    write_environment(bundled, "failing", kind="inherit", setup=[failing])
    room, absent = f"+cluster.caches.TMPDIR={project}/tmp", "cluster.caches.TORCH_HOME=/proc/torch"
    submit(bundled, "+experiment=tiny", "name=right", "environment=own", room, absent, HF_HOME=f"{project}/own")
    submit(bundled, "+experiment=tiny", "name=wrong", "environment=failing")
    right, wrong = run_dirs_with_runs(bundled)
    wait_for_results(bundled, [right])
    found = json.loads((right / "variables.json").read_text())
    assert found["ORDER"] == f"before loaded {project}/venv"
    assert (found["HF_HOME"], found["TMPDIR"]) == (f"{project}/own", f"{project}/tmp")
    assert found["KERAS_HOME"].startswith(str(bundled.cluster.scratch())) and Path(found["KERAS_HOME"]).is_dir()
    assert "TORCH_HOME" not in found and "TORCH_HOME=/proc/torch: the folder" in bundled("logs", right.name).stdout
    job_id = events(wrong)[-1]["job_id"]
    bundled.cluster.wait_for_state(job_id, "FAILED", in_accounting=True)
    reason = f"environment.setup: exit status 127: {failing}"
    (row,) = [row for row in bundled.status() if row["run"] == wrong.name]
    assert (row["state"], row["why"], row["restarts"]) == ("FAILED", reason, 0), row
    assert f'The line "{failing}" of environment.setup failed' in bundled("why", wrong.name).stdout
    assert reason in bundled("logs", wrong.name).stdout
    assert not (wrong / "variables.json").exists() and not started(wrong)


def test_what_cannot_work_is_refused_before_it_waits(bundled: Truba, software: Path) -> None:
    def refused(*arguments: str) -> str:
        done = bundled(*arguments, "data.name=digits", bundled.runs_folder(), program=PYZ)
        assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    mnist = "+experiment=mnist"
    assert "has no tensorflow" in refused(mnist, "environment=image")
    missing = refused(mnist, "environment=image", f"environment.image={software}/images/python.sif")
    assert "there is no such file" in missing and f"python{OTHER}.sif" in missing
    unknown = refused(mnist, "environment=modules", "environment.modules=[apps/truba-ai/gpu-2042.0]")
    assert "gpu-2042.0" in unknown and "module avail" in unknown
    empty = refused(mnist, "environment=image", f"environment.image={bundled.project}")
    assert "executable file not found" in empty and "Set environment.python" in empty
    assert "there is no python4" in refused(mnist, "environment=modules", "environment.python=python4")
    assert "Set environment.python" in refused(mnist, "environment=image", "environment.python=python4")
    assert not (bundled.project / "runs").exists() or not bundled.jobs()


def test_a_login_node_that_cannot_enter_the_image_has_a_job_do_it(bundled: Truba, software: Path) -> None:
    only_on_nodes = '#!/bin/bash\n[ "$(hostname)" != arf-ui1 ] || { echo "no user namespaces here"; exit 255; }\n'
    command = bundled.write("bin/apptainer", f'{only_on_nodes}exec {software}/bin/apptainer "$@"\n', executable=True)
    chosen = ["+experiment=tiny", "environment=image", f"environment.apptainer={command}"]
    before = set(bundled.jobs("truba-environment"))
    done = bundled(*chosen, bundled.runs_folder(), program=PYZ)
    assert done.returncode == 0, done.stderr
    assert "no user namespaces here" in done.stderr and f"Python {OTHER}" in done.stdout
    asked = set(bundled.jobs("truba-environment"))
    assert len(asked - before) == 1
    again = bundled(*chosen, "train.seed=1", bundled.runs_folder(), program=PYZ)
    assert again.returncode == 0 and again.stderr == "" and f"Python {OTHER}" in again.stdout
    assert set(bundled.jobs("truba-environment")) == asked
