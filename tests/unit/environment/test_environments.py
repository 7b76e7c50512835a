"""How a job gets its Python: what is asked of the shell, what is refused, and what is looked into only once."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from truba_runner.code import package
from truba_runner.config.backends import TRAITS
from truba_runner.config.schema import Environment, Experiment
from truba_runner.environment import probe, report
from truba_runner.environment import start as environment
from truba_runner.errors import Refused
from truba_runner.rules import environment as rules_environment
from truba_runner.rules.experiment import plan
from truba_runner.slurm import client, states
from truba_runner.slurm.request import derive
from truba_runner.storage.package_files import shipped
from truba_runner.submission import local

Compose = Callable[..., Experiment]


def test_truba_trains_with_its_modules_and_this_machine_with_its_own_python(experiment: Compose) -> None:
    on_truba = experiment().environment
    assert (on_truba.kind, on_truba.modules) == ("module", ["apps/truba-ai/gpu-2024.0"])
    assert experiment(cluster="local").environment.kind == "inherit"
    assert experiment("environment=inherit").environment.kind == "inherit"
    assert experiment("environment.modules=[comp/python/3.12.2]").environment.modules == ["comp/python/3.12.2"]


@pytest.mark.parametrize("kind", rules_environment.KINDS)
def test_text_in_a_set_comes_in_the_same_order_in_each_start(kind: str) -> None:
    start = environment.start(Environment("e", kind=kind, venv="/v", image="/i.sif"), Path("/w"))
    (line,) = [line for line in start.setup if "PYTHONHASHSEED" in line]
    script = f'{line}; {shlex.quote(sys.executable)} -c \'print({{"b", "a", "c", "d"}})\''
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}

    def order(**variables: str) -> str:
        return subprocess.run(["bash", "-c", script], env={**plain, **variables}, capture_output=True, text=True).stdout

    assert len({order() for _ in range(4)}) == 1 and order()
    assert len({order(PYTHONHASHSEED=str(seed)) for seed in range(1, 5)}) > 1, "what the user sets holds"
    assert local.with_package({})["PYTHONHASHSEED"] == os.environ.get("PYTHONHASHSEED", "0")


def test_what_a_backend_needs_is_looked_for_in_an_environment() -> None:
    assert {name for traits in TRAITS.values() for name in traits.needs} <= set(report.PACKAGES)


REFUSALS = [
    (["environment=apptainer"], "environment.image: it is not set"),
    (["environment=apptainer", "environment.image=tf.sif"], "must be the absolute path"),
    (["environment=apptainer", "environment.image='docker://tf'"], "no internet access to download it"),
    (["environment=apptainer", "environment.image=/tf.sif", "environment.binds=['/a,b']"], "a comma"),
    (["environment=venv"], "environment.venv: it is not set"),
    (["environment.modules=[]"], "it names no module to load"),
    (["environment.kind=guess"], "There are: apptainer, conda, inherit, module, venv."),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSALS, ids=[" ".join(row[0]) for row in REFUSALS])
def test_what_cannot_be_meant_is_refused(experiment: Compose, overrides: list[str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        plan(experiment(*overrides))


def test_a_run_on_this_machine_has_no_environment_of_its_own(experiment: Compose) -> None:
    with pytest.raises(Refused, match="trains with the Python that starts it"):
        plan(experiment("environment=venv", "environment.venv=/v", cluster="local"))


def test_a_container_shows_what_a_run_needs_and_each_path_once(experiment: Compose, tmp_path: Path) -> None:
    composed = experiment("environment=apptainer", "environment.image=/i.sif", "resources.partition=palamut-cuda")
    request = derive(composed)
    project, job_file = Path("/arf/home/ayse/project"), Path("/arf/home/ayse/project/jobs/own.py")
    binds = environment.binds(composed, request, project, job_file)
    assert binds == [str(tmp_path / "scratch"), "/localscratch", "/arf/home/ayse/project"]
    elsewhere = replace(composed, data=replace(composed.data, folder="/truba/data"))
    assert "/truba/data" in environment.binds(elsewhere, request, project, Path("/state/shipped/1/jobs/mnist.py"))
    assert "/state/shipped/1" in environment.binds(elsewhere, request, project, Path("/state/shipped/1/jobs/mnist.py"))
    # The list of bad nodes that colleagues share.
    (tmp_path / "group").mkdir()
    for folder, bound in ((tmp_path / "group", True), (tmp_path / "missing", False)):
        sharing = replace(composed, cluster=replace(composed.cluster, bad_nodes=str(folder / "bad.jsonl")))
        assert (str(folder) in environment.binds(sharing, request, project, job_file)) is bound
    start = environment.start(composed.environment, Path("/w"), binds, gpus=True)
    assert " --nv " in start.python and start.python.endswith("-- python3")
    assert " --nv " not in environment.start(composed.environment, Path("/w"), binds).python


# -- the shell, run ------------------------------------------------------------------------------------------------


def bash(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {"PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(["bash", "-c", script], env=kept, capture_output=True, text=True, timeout=240)


def test_modules_are_purged_before_and_a_failure_ends_the_job() -> None:
    module = "module() { echo module $*; [ $2 != bad ]; }; "
    start = environment.start(Environment("m", kind="module", modules=["a/1", "b c"]), Path())
    done = bash(module + "\n".join([*start.setup, "echo trained"]))
    assert done.stdout.splitlines() == ["module purge", "module load a/1 b c", "trained"]
    bad = environment.start(Environment("m", kind="module", modules=["bad"]), Path())
    failed = bash(module + "\n".join([*bad.setup, "echo trained"]))
    assert failed.returncode == states.NOT_LOADED and "trained" not in failed.stdout
    assert "module load bad failed" in failed.stderr


STAND_IN = """\
#!/bin/bash
# Apptainer as the wrapper sees it: it notes how it was called, and runs the program with the variables handed on.
printf '%s\\n' "$@" >"$NOTES/argv"
while [ "$1" != {image} ]; do shift; done
shift
variables=()
for name in $(compgen -e APPTAINERENV_); do variables+=("${{name#APPTAINERENV_}}=${{!name}}"); done
exec env -i PATH="$PATH" "${{variables[@]}}" "$@"
"""


# Of a shell and of a surrounding job; the second kind says where the cluster is.
OF_SLURM = {
    "SBATCH_PARTITION": "debug", "SBATCH_NO_REQUEUE": "1", "SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_MEM_PER_CPU": "100",
    "SLURM_JOB_ID": "3", "SLURM_TIME_FORMAT": "relative", "SLURMD_NODENAME": "akya1", "SRUN_DEBUG": "3",
    "SALLOC_QOS": "x", "SQUEUE_STATES": "PENDING", "SACCT_LOCAL": "1", "SINFO_PARTITION": "smp", "SCANCEL_STATE": "x",
    "SCONTROL_ALL": "1", "PMI_RANK": "1", "PMIX_RANK": "1",
}  # fmt: skip
FINDS_SLURM = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "arf", "SLURM_JWT": "x", "SLURM_CONF_SERVER": "h"}


def test_a_command_of_slurm_gets_what_finds_the_cluster_and_nothing_of_the_shell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**OF_SLURM, **FINDS_SLURM, "OWN": "x"}.items():
        monkeypatch.setenv(name, value)
    got = dict(line.split("=", 1) for line in client.run(["env"]).splitlines() if "=" in line)
    assert not OF_SLURM.keys() & got.keys()
    assert {**FINDS_SLURM, "OWN": "x", "SLURM_BITSTR_LEN": "0"}.items() <= got.items()


@pytest.fixture
def contained(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a Python program through the wrapper, with a stand-in of Apptainer and of scontrol."""
    for name, text in {
        "apptainer": STAND_IN.format(image="/image.sif"),
        "scontrol": '#!/bin/bash\necho "scontrol of $(id -un): $*"; cat; echo oops >&2; exit 7\n',
        "sinfo": "#!/bin/bash\ncompgen -e\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(program: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        argv = ["bash", str(shipped("container") / "apptainer"), "--image", "/image.sif", *options, "--"]
        environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NOTES": str(tmp_path), "TMPDIR": str(tmp_path)}
        environ |= {"PYTHONPATH": str(Path(__file__).parents[3]), **variables}
        return subprocess.run(
            [*argv, sys.executable, "-c", textwrap.dedent(program)],
            env=environ,
            capture_output=True,
            text=True,
            timeout=240,
            start_new_session=True,
        )

    return run


def test_the_wrapper_hands_on_what_a_job_needs_and_nothing_else(
    contained: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    program = "import json, os, sys; print(json.dumps(dict(os.environ))); sys.exit(5)"
    odd = 'a, "b" $HOME\nc'
    done = contained(
        program, "--nv", "--bind", f"{tmp_path}:/data:ro", "--bind", "/no/such/folder", "--pass", "WANDB_*",
        SLURM_PROCID="3", TF_X=odd, WANDB_MODE="offline", SECRET="x", CUDA_HOME="/usr/local/cuda",
        CUDA_VISIBLE_DEVICES="0,1",
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    inside = json.loads(done.stdout)
    assert inside["SLURM_PROCID"] == "3" and inside["TF_X"] == odd and inside["WANDB_MODE"] == "offline"
    assert inside["CUDA_VISIBLE_DEVICES"] == "0,1" and not {"SECRET", "CUDA_HOME", "NOTES"} & inside.keys()
    argv = (tmp_path / "argv").read_text().splitlines()
    assert {"--nv", "--cleanenv", "--no-eval", f"{tmp_path}:/data:ro"} <= set(argv)
    assert "/no/such/folder" not in argv, "a path that this node has not is not asked for"
    assert "TRUBA_SLURM_RELAY" not in inside and not list(tmp_path.glob("truba-relay.*")), "no job, no relay"


def test_slurms_commands_are_run_outside(
    contained: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    program = """
        import os, sys
        from truba_runner.slurm import client
        assert client.available()
        for argv in (["scontrol", "requeue", "1 2", "*"], ["rm", "-rf", "x"]):
            try:
                client.run(argv, text="input")
            except client.SlurmError as error:
                print(error.message, error.refused)
        relay = os.environ["TRUBA_SLURM_RELAY"]
        print(oct(os.stat(relay).st_mode & 0o777), [open(f"{relay}/{one}/out").read() for one in os.listdir(relay)
            if one.startswith("call-")])
    """
    done = contained(program, SLURM_JOB_ID="1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "oops True" and lines[1] == "rm is no command of Slurm True"
    assert "0o700" in lines[2] and "requeue 1 2 *\\ninput" in lines[2]
    assert not list(tmp_path.glob("truba-relay.*")), "it takes its folder away"


def test_commands_outside_get_what_finds_the_cluster_and_nothing_of_the_job(
    contained: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    program = "from truba_runner.slurm import client; print(client.run(['sinfo']))"
    done = contained(program, **OF_SLURM, **FINDS_SLURM)
    assert {name for name in done.stdout.split() if name.startswith(("S", "PMI"))} - {"SHLVL"} == {
        *FINDS_SLURM, "SLURM_BITSTR_LEN"
    }, done.stderr  # fmt: skip


def test_a_signal_to_the_whole_group_does_not_end_the_wrapper(
    contained: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    program = """
        import os, signal, sys, time
        got = []
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: got.append(number))
        for number in (signal.SIGTERM, signal.SIGUSR2):
            os.killpg(0, number)
        from truba_runner.slurm import client
        try:
            client.run(["scontrol", "requeue", "1"])
        except client.SlurmError as error:
            print(len(got), error.message)
        sys.exit(4)
    """
    done = contained(program, SLURM_JOB_ID="1")
    assert (done.returncode, done.stdout) == (4, "2 oops\n"), done.stderr


def test_no_apptainer_is_told(tmp_path: Path) -> None:
    done = bash(f"bash {shipped('container') / 'apptainer'} --apptainer none-such --image /i -- python3")
    assert done.returncode == states.NO_APPTAINER and "no command none-such" in done.stderr


# -- what a job imports ------------------------------------------------------------------------------------------------


def test_a_job_gets_the_package_once_for_all_and_under_the_name_of_its_content(tmp_path: Path) -> None:
    chosen = Environment("a", kind="apptainer", image="/i.sif")
    package.provide(chosen, tmp_path)
    first = {file: file.stat().st_ino for file in (tmp_path / ".code").iterdir()}
    assert len(first) == 2 and stat.S_IMODE((tmp_path / ".code").stat().st_mode) == 0o700
    touch, *checks, line = package.setup(chosen, tmp_path)
    for used_again in (partial(package.provide, chosen, tmp_path), partial(bash, touch)):
        for file in first:
            os.utime(file, (0, 0))
        used_again()
        assert all(file.stat().st_mtime > 0 for file in first), "a purge takes what nobody has written to for long"
    assert {file: file.stat().st_ino for file in (tmp_path / ".code").iterdir()} == first
    assert line == f"export PYTHONPATH={package.archive(tmp_path)}"
    program = "import truba_runner.worker; print(truba_runner.__file__)"
    done = subprocess.run([sys.executable, "-S", "-c", program], env={"PYTHONPATH": line.partition("=")[2]},
                          capture_output=True, text=True, cwd="/")  # fmt: skip
    assert done.stdout.startswith(str(tmp_path / ".code")), done.stderr
    assert bash("\n".join([*checks, "echo goes on"])).stdout == "goes on\n"
    for file in first:
        content = file.read_bytes()
        file.write_bytes(content + b"x")
        done = bash("\n".join([*checks, "echo goes on"]))
        assert (done.returncode, done.stdout) == (
            1,
            "",
        ) and f"{file} has changed since this job was submitted" in done.stderr
        file.write_bytes(content)


# -- the probe ---------------------------------------------------------------------------------------------------------


def never(script: str) -> Any:
    raise AssertionError("no job was to be asked")


REPORT = {"python": "3.12.2", "executable": "/p", "packages": {"tensorflow": "2.18", "keras": "3.8"}, "cuda": {}}


@pytest.fixture
def in_venv(experiment: Compose, tmp_path: Path) -> tuple[Experiment, Path]:
    """An experiment in a virtual environment whose Python is a shell script that prints what a test gave it to say."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    (tmp_path / "says").write_text("TRUBA-ENVIRONMENT " + json.dumps(REPORT))
    python.write_text(f"#!/bin/sh\necho called >>{tmp_path}/calls\ncat {tmp_path}/says\n")
    python.chmod(0o755)
    return experiment("environment=venv", f"environment.venv={tmp_path}/venv"), tmp_path


def test_an_environment_is_asked_once_until_it_changes(in_venv: tuple[Experiment, Path]) -> None:
    chosen, folder = in_venv
    assert probe.found(chosen, never) == REPORT and probe.found(chosen, never) == REPORT
    assert (folder / "calls").read_text().count("called") == 1
    assert "Python 3.12.2, tensorflow 2.18" in probe.described(chosen.environment, REPORT)
    packages = folder / "venv" / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)
    for count, changed in enumerate((packages, folder / "venv" / "pyvenv.cfg"), start=2):
        os.utime(changed, ns=(1, 1))
        probe.found(chosen, never)
        assert (folder / "calls").read_text().count("called") == count


def test_what_was_lacking_is_looked_for_again(in_venv: tuple[Experiment, Path]) -> None:
    chosen, folder = in_venv
    whole = (folder / "says").read_text()
    (folder / "says").write_text("TRUBA-ENVIRONMENT " + json.dumps({**REPORT, "packages": {}}))
    with pytest.raises(Refused, match="has no tensorflow"):
        probe.found(chosen, never)
    (folder / "says").write_text(whole)
    assert probe.found(chosen, never) == REPORT and probe.found_here(chosen) == REPORT


def test_modules_are_looked_into_again_when_their_file_has_changed(
    experiment: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apps").mkdir()
    file = tmp_path / "apps" / "ai.lua"
    file.write_text("")
    monkeypatch.setenv("MODULEPATH", f"/nowhere:{tmp_path}")
    chosen = experiment("environment.modules=[apps/ai]")
    versions = iter(("3.13.1", "3.13.2"))
    says = "TRUBA-ENVIRONMENT "
    monkeypatch.setattr(probe, "_run_here", lambda script: (says + json.dumps({**REPORT, "python": next(versions)}), 0))
    assert [probe.found(chosen, never)["python"] for _ in range(2)] == ["3.13.1", "3.13.1"]
    file.write_text("-- of a newer Python")
    assert [probe.found(chosen, never)["python"] for _ in range(2)] == ["3.13.2", "3.13.2"]


LACKING = [
    ({"python": "3.8.18"}, "its Python is 3.8.18"),
    (
        {"packages": {"torch": "2.6"}},
        "has no tensorflow and no keras, which the keras backend needs (it has torch 2.6)",
    ),
    ({"packages": {}}, "it has no training framework"),
    ({"packages": {"tensorflow": "2.12", "keras": "2.12"}}, "its Keras is 2.12"),
]


@pytest.mark.parametrize(("held", "words"), LACKING, ids=[row[1][:20] for row in LACKING])
def test_what_cannot_train_is_refused(in_venv: tuple[Experiment, Path], held: dict[str, Any], words: str) -> None:
    chosen, folder = in_venv
    (folder / "says").write_text("TRUBA-ENVIRONMENT " + json.dumps({**REPORT, **held}))
    with pytest.raises(Refused) as refused:
        probe.found(chosen, never)
    assert words in str(refused.value)


def test_an_older_framework_than_was_tried_is_only_warned_of(
    in_venv: tuple[Experiment, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, folder = in_venv
    packages = {"tensorflow": "2.17.1", "keras": "3.8"}
    (folder / "says").write_text("TRUBA-ENVIRONMENT " + json.dumps({**REPORT, "packages": packages}))
    assert probe.found(chosen, never)["packages"] == packages
    assert "tensorflow 2.17.1 is older than 2.18" in capsys.readouterr().err


def test_where_this_machine_cannot_a_job_is_asked_and_where_nothing_answers_the_run_goes_unchecked(
    in_venv: tuple[Experiment, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, folder = in_venv
    (folder / "venv" / "bin" / "python").write_text("#!/bin/sh\nsleep 60 & wait\n")
    monkeypatch.setattr(probe, "HERE_SECONDS", 0.2)
    assert probe.found(chosen, lambda script: None) == {}
    assert "no answer within 0.2 s" in (said := capsys.readouterr().err) and "submitted without this check" in said
    scripts: list[str] = []

    def answers(script: str) -> tuple[str, int]:
        scripts.append(script)
        return "welcome\nTRUBA-ENVIRONMENT " + json.dumps(REPORT) + "\n", 0

    assert probe.found(chosen, answers) == REPORT and probe.found(chosen, never) == REPORT
    assert len(scripts) == 1 and f"{folder}/venv/bin/python - <<" in scripts[0]
    with pytest.raises(Refused, match="a job cannot start it: broken"):
        probe.found(
            replace(chosen, environment=replace(chosen.environment, setup=["true"])), lambda script: ("broken", 1)
        )


def test_this_python_is_looked_into_without_importing_anything(experiment: Compose) -> None:
    program = (
        "import sys; from truba_runner.environment import report as r; found = r.report(); "
        "print(found['python'], not {'tensorflow', 'torch', 'keras', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [".".join(map(str, sys.version_info[:3])), "True"]


def test_files_that_are_not_there(experiment: Compose, tmp_path: Path) -> None:
    (tmp_path / "tf-2.sif").touch()
    image = experiment("environment=apptainer", f"environment.image={tmp_path}/tf-1.sif")
    with pytest.raises(Refused, match=r"there is no such file. There are: .*tf-2.sif"):
        probe.found(image, never)
    with pytest.raises(Refused, match="not a virtual environment"):
        probe.found(experiment("environment=venv", f"environment.venv={tmp_path}"), never)
    gone = tmp_path / "venv" / "bin" / "python"
    gone.parent.mkdir(parents=True)
    gone.symlink_to(tmp_path / "python3.12")
    with pytest.raises(Refused, match="its Python has been removed"):
        probe.found(experiment("environment=venv", f"environment.venv={tmp_path}/venv"), never)
    with pytest.raises(Refused, match="it cannot be accessed: Not a directory"):
        probe.found(experiment("environment=apptainer", f"environment.image={tmp_path}/tf-2.sif/x.sif"), never)
