"""The shell lines that enter an environment, run with bash: what they leave behind, and how they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from truba_runner.code import package
from truba_runner.config.schema import Environment, Experiment
from truba_runner.environment import caches, probe, shell_lines, start
from truba_runner.errors import Refused
from truba_runner.rules.experiment import plan
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import states
from truba_runner.slurm.request import derive
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission

Compose = Callable[..., Experiment]
MODULE = 'module() { echo "module $*"; [ "$2" != bad ]; }\n'


def bash(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as Slurm does: from a file."""
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere", **variables}
    return subprocess.run(["bash", "/dev/stdin"], input=script, env=bare, capture_output=True, text=True, timeout=240)


def entered(environment: Environment, then: str = "echo trained", before: str = MODULE) -> str:
    return "\n".join([before, *start.start(environment, Path("/w")).setup, then])


# -- lines of the user ---------------------------------------------------------------------------------------------


FAILING = [
    ("conda activate nothing", 127),
    ("none-such a; true", 127),
    ("X=$(exit 5)", 5),
    ("false\ntrue", 1),
    ("if true; then none-such; fi", 127),
    ("f() { return 7; }; f; true", 7),
    ("set -u; echo $none_such", 1),
    ("exit 0", 0),
    ("exit 3", 3),
    ("if true; then", 1),
    ("echo 'a", 1),
    ("source /none/such", 1),
]


@pytest.mark.parametrize(("line", "status"), FAILING, ids=[line for line, _ in FAILING])
@pytest.mark.parametrize("key", ["setup", "setup_before"])
def test_a_line_that_fails_ends_the_job_and_is_its_reason(key: str, line: str, status: int) -> None:
    done = bash(entered(Environment("e", **{key: ["echo first", line, "echo last"]})))
    assert (done.returncode, done.stdout) == (states.SETUP_FAILED, "first\n"), done.stderr
    reason = f"environment.{key}: exit status "
    (told,) = [one for one in done.stderr.splitlines() if one.startswith(states.REASON)]
    assert told.startswith(reason) and told.endswith(line.splitlines()[0]), told
    # Syntax errors and `set -u` have other statuses in other versions of bash.
    assert "'" in line or "then" in line or "set -u" in line or told.startswith(f"{reason}{status}: ")


def test_what_a_line_allows_for_is_no_failure(tmp_path: Path) -> None:
    sourced = tmp_path / "sourced.sh"
    sourced.write_text("false\nnone_such_either\nexport OWN=from-file\ntrue\n")
    lines = [
        f". {sourced}", "false || true", "! true", "[ -f /none ] && . /none", "# nothing", "f() { false; true; }; f",
        "if false; then :; fi", "for n in 1 2; do\n  echo $n\ndone",
        "trap 'echo own trap' EXIT", "cd /tmp",
    ]  # fmt: skip
    done = bash(entered(Environment("e", setup=lines), "false; echo $OWN $PWD"))
    assert (done.returncode, done.stdout) == (0, "1\n2\nfrom-file /tmp\nown trap\n"), done.stderr


def test_modules_come_before_the_set_up_with_every_kind() -> None:
    for kind in ("inherit", "module", "venv", "apptainer"):
        lines = ["echo $VIRTUAL_ENV after"]
        chosen = Environment("e", kind, ["a/1"], lines, ["echo before"], venv="/v", image="/i")
        done = bash(entered(chosen))
        wanted = ["before", "module purge", "module load a/1", "/v after" if kind == "venv" else "after", "trained"]
        assert [line.strip() for line in done.stdout.splitlines()] == wanted, kind
    bad = bash(entered(Environment("e", "venv", ["bad"], venv="/v")))
    assert bad.returncode == states.NOT_LOADED and "trained" not in bad.stdout
    assert bad.stderr == "environment.modules: module load bad failed\n"


def test_module_is_found_in_a_bare_environment(tmp_path: Path) -> None:
    init = tmp_path / "init" / "bash"
    init.parent.mkdir()
    init.write_text(MODULE)
    for lines in ({"modules": ["a"]}, {"setup_before": ["module use /x", "module load a"]}):
        script = entered(Environment("e", **lines), before='type() { builtin type "$@"; }')  # type: ignore[arg-type]
        # Whatever this machine's own profile defines.
        script = script.replace("/etc/profile", "/none/profile")
        found = bash(script, MODULESHOME=str(tmp_path))
        assert "module load a\n" in found.stdout and "trained" in found.stdout, found.stderr
        missing = bash(script)
        assert missing.returncode in {states.NO_MODULES, states.SETUP_FAILED} and "trained" not in missing.stdout
    assert not any("profile" in line for line in start.start(Environment("e", setup=["echo"]), Path()).setup)


# -- conda ---------------------------------------------------------------------------------------------------------

# What the hook of conda 24 prints, in short: functions, and `conda activate base` at the end. micromamba's is like it.
CONDA = r"""#!/bin/bash
name=$(basename "$0")
case "$*" in
  "shell.posix hook" | "shell hook --shell posix")
    case "$name $*" in conda\ shell.posix* | *mamba\ shell\ hook*) ;; *) exit 2 ;; esac
    cat <<END
export CONDA_EXE='$0'
__${name}_activate() {
    \local ask_conda
    ask_conda="\$(PS1="\${PS1:-}" "$0" shell.posix "\$@")" || \return
    \eval "\$ask_conda"
}
$name() {
    \local cmd="\${1-__missing__}"
    case "\$cmd" in
        activate|deactivate) __${name}_activate "\$@" ;;
        *) "$0" "\$@" ;;
    esac
}
END
    [ $name != conda ] || echo "conda activate 'base'"
    ;;
  "shell.posix activate "*)
    root=$(dirname "$(dirname "$0")")
    case $3 in /*) prefix=$3 ;; base) prefix=$root ;; *) prefix=$root/envs/$3 ;; esac
    [ -d "$prefix/conda-meta" ] || { echo "EnvironmentNameNotFound: Could not find conda environment: $3" >&2; exit 1; }
    echo "PATH='$prefix/bin:$PATH'"
    echo "export CONDA_PREFIX='$prefix'"
    for script in "$prefix"/etc/conda/activate.d/*.sh; do [ ! -e "$script" ] || echo ". \"$script\""; done
    ;;
  "env list")
    root=$(dirname "$(dirname "$0")")
    printf '# conda environments:\n#\n# * -> active\nbase                     %s\n' "$root"
    for prefix in "$root"/envs/*; do printf '%-22s   %s\n' "$(basename "$prefix")" "$prefix"; done
    ;;
  *) echo "CondaError: Run 'conda init' before 'conda activate'" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An installation of conda, and two of its kind, with the environments base and `net`."""
    root = tmp_path / "mini conda3"
    for name in ("conda", "micromamba", "mamba"):
        file = root / "bin" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CONDA)
        file.chmod(0o755)
    for prefix in (root, root / "envs" / "net"):
        (prefix / "conda-meta").mkdir(parents=True)
        (prefix / "bin").mkdir(exist_ok=True)
        (prefix / "bin" / "python").symlink_to(sys.executable)
    hook = root / "envs" / "net" / "etc" / "conda" / "activate.d" / "cuda.sh"
    hook.parent.mkdir(parents=True)
    hook.write_text("false\nexport CUDA_HOME=$CONDA_PREFIX/cuda\n")
    return root


def conda(chosen: object = "net", command: str = "conda", **more: object) -> Environment:
    return Environment("c", "conda", conda=str(chosen), conda_command=command, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["conda", "micromamba", "mamba"])
def test_conda_activates_by_its_hook_on_top_of_modules(root: Path, command: str) -> None:
    chosen = conda(command=command, modules=["miniconda3"], setup=["echo $CUDA_HOME"])
    module = f'module() {{ [ $1 = purge ] || PATH="{root}/bin:$PATH"; }}'
    script = entered(chosen, f'type -p python; {start.start(chosen, Path()).python} -c "print(1)"', module)
    done = bash(script)
    net = root / "envs" / "net"
    assert done.stdout.splitlines() == [f"{net}/cuda", f"{net}/bin/python", "1"], done.stderr
    assert "bashrc" not in script and " run " not in script


def test_a_prefix_finds_the_conda_that_it_belongs_to(root: Path) -> None:
    for prefix in (root / "envs" / "net", root):
        done = bash(entered(conda(prefix), "echo $CONDA_PREFIX"))
        assert done.stdout == f"{prefix}\n", done.stderr
    assert bash(entered(conda(root / "envs" / "net", str(root / "bin" / "conda")))).stdout == "trained\n"


def test_without_conda_or_its_environment_the_job_ends(root: Path) -> None:
    none = bash(entered(conda()))
    assert (none.returncode, none.stdout) == (states.NO_CONDA, "")
    assert none.stderr == "environment.conda: there is no command conda here\n"
    unknown = bash(entered(conda("nothing")), PATH=f"{root}/bin:/usr/bin:/bin")
    assert (unknown.returncode, unknown.stdout) == (states.NOT_ACTIVATED, "")
    assert "Could not find conda environment: nothing\n" in unknown.stderr
    assert unknown.stderr.endswith(f" {root}/envs/net\nenvironment.conda: conda activate nothing failed\n")
    unhooked = bash(entered(conda(command="/bin/false"), before="conda() { builtin false; }"))
    assert unhooked.returncode == states.NOT_ACTIVATED


def test_the_whole_script_of_a_job_submitted_by_cron(experiment: Compose, root: Path, tmp_path: Path) -> None:
    composed = experiment(
        "environment=conda", f"environment.conda={root}/envs/net", "environment.setup=['echo set up']"
    )
    prepared = Prepared(composed, RunDir(tmp_path / "run"), derive(composed), Path("/p/jobs/mnist.py"))
    package.provide(composed.environment, Path(composed.cluster.runs_folder))
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\necho "$*"; echo $CONDA_PREFIX $KERAS_HOME; exit 5\n')
    srun.chmod(0o755)
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text(MODULE)
    script = Submission(prepared).script().replace("/etc/profile", "/none/profile")
    bare = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "MODULESHOME": str(tmp_path), "SLURM_JOB_ID": "7"}
    done = bash(script, **bare)
    purge, load, line, command, told = done.stdout.splitlines()
    assert (purge, load, line) == ("module purge", "module load comp/python/miniconda3", "set up"), done.stderr
    assert f"{root}/envs/net/bin/python -u -m truba_runner.worker {tmp_path}/run" in command
    assert told == f"{root}/envs/net {composed.cluster.caches['KERAS_HOME']}" and done.returncode == 5
    failing = script.replace("echo set up", "none-such")
    assert bash(failing, **bare).returncode == states.SETUP_FAILED


def never(script: str) -> None:
    raise AssertionError("no job was to be asked")


def test_an_unknown_conda_environment_is_refused_before_the_queue(
    experiment: Compose, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{root}/bin:{os.environ['PATH']}")
    (tmp_path / ".conda").mkdir()
    (tmp_path / ".conda" / "environments.txt").write_text(f"{root}/envs/net\n{root}/envs/gone\n")
    given = ["environment=conda", "environment.modules=[]"]
    with pytest.raises(Refused, match="Could not find conda environment: nothing") as refused:
        probe.found(experiment(*given, "environment.conda=nothing"), never)
    assert f"There are: {root}, {root}/envs/net." in str(refused.value)
    assert str(refused.value).count("envs/net") == 1, "conda's own listing is no reason"
    with pytest.raises(Refused, match="not a conda environment"):
        probe.found(experiment(*given, f"environment.conda={tmp_path}"), never)
    with pytest.raises(Refused, match=r"environment=conda \(net\): its Python .* has no tensorflow"):
        probe.found(experiment(*given, "environment.conda=net"), never)


def test_a_failing_line_is_told_before_the_queue_where_it_also_fails_in_a_job(experiment: Compose) -> None:
    chosen = experiment("environment=inherit", "environment.setup=['none-such x']")
    told = r"a job cannot start it: environment.setup: exit status 127: none-such x. Correct the line, or add \|\| true"
    with pytest.raises(Refused, match=told):
        probe.found(chosen, lambda script: ("environment.setup: exit status 127: none-such x\n", states.SETUP_FAILED))
    only_there = experiment("environment=inherit", "environment.setup=['[ -n \"$SLURM_JOB_ID\" ]']")
    assert "environment.setup: exit status 1" in str(probe.found_here(only_there))


IGNORED = [
    (["environment=venv", "environment.venv=/v", "environment.image=/i.sif"], "environment.image=/i.sif: it has no"),
    (["environment=module", "environment.venv=/v"], "only venv uses it"),
    (["environment=module", "environment.conda=net"], "choose environment=conda"),
    (["environment=inherit", "environment.binds=[/a,/b]"], r"environment.binds=\[/a, /b\]"),
    (["environment=conda"], "environment.conda: it is not set"),
    (["environment=conda", "environment.conda=envs/net"], "name of a conda environment, or its absolute path"),
    (["environment=conda", "environment.conda=net", "environment.conda_command=/x/y"], "There are: conda, mamba"),
    (["environment=apptainer", "environment.image=/i.sif", "environment.binds=[data]"], "only an absolute path"),
    (["environment=apptainer", "environment.image=/i.sif", "environment.pass_on=['A=1']"], "the name of a variable"),
    (["environment=inherit", "environment.setup=['conda activate net']"], "the job would not use its Python"),
    (["environment=inherit", "environment.setup_before=['. /v/bin/activate']"], r"setup_before=\[. /v/bin/activate\]"),
    (["environment=apptainer", "environment.image=/i", "environment.setup=['x; source activate n']"], "has its own"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), IGNORED, ids=[" ".join(row[0]) for row in IGNORED])
def test_what_would_be_ignored_is_refused(experiment: Compose, overrides: list[str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        plan(experiment(*overrides))


def test_an_activation_whose_python_is_used_is_accepted(experiment: Compose) -> None:
    activate = "environment.setup=['source /v/bin/activate']"
    assert plan(experiment("environment=module", activate))
    assert plan(experiment("environment=inherit", activate, "environment.python=python"))
    assert plan(experiment("environment=inherit", "environment.setup=['echo activate; . /v/activate.d.sh']"))


def test_what_a_line_exports_reaches_a_container() -> None:
    lines = ["export WANDB_MODE=offline; export A_B=1", "export PATH=/x:$PATH", "export LD_LIBRARY_PATH=/x"]
    python = start.start(Environment("e", "apptainer", image="/i", setup=lines), Path("/w")).python
    assert "--pass WANDB_MODE --pass A_B -- python3" in python


def test_a_local_run_refuses_what_only_jobs_do(experiment: Compose) -> None:
    for given in ("environment.setup=[true]", "environment.modules=[a]", "environment.python=python3"):
        with pytest.raises(Refused, match="it has no effect: a run on this machine"):
            plan(experiment(given, cluster="local"))
    for given in (["environment=venv", "environment.venv=/v"], ["environment=conda", "environment.conda=net"]):
        assert plan(experiment(*given, "environment.modules=[lib/cuda/12.4]"))


# -- caches --------------------------------------------------------------------------------------------------------


def test_caches_are_where_the_site_has_room_and_what_is_set_holds(experiment: Compose, tmp_path: Path) -> None:
    composed = experiment("resources.partition=kolyoz-cuda", "resources.constraint=H100")
    folders = caches.folders(composed, derive(composed))
    names = {"HF_HOME", "KERAS_HOME", "MPLCONFIGDIR", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
    assert set(folders) == {*names, "TMPDIR"} and all(path.startswith(str(tmp_path)) for path in folders.values())
    akya, here = experiment(), experiment(cluster="local")
    assert set(caches.folders(akya, derive(akya))) == names, "its /tmp has room"
    assert caches.folders(here, derive(here)) == {}
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text("{}")
    odd = {name: path + ' "$(x)`' for name, path in folders.items()}
    setup = start.start(Environment("e", setup=["echo $HF_HOME"]), Path("/w"), caches=odd).setup
    done = bash("\n".join([*setup, 'echo "$TMPDIR"']), HF_HOME=f"{tmp_path}/own", HOME=str(tmp_path))
    assert done.stdout.splitlines() == [f"{tmp_path}/own", odd["TMPDIR"]], done.stderr
    assert Path(odd["TMPDIR"]).stat().st_mode & 0o777 == 0o700 and (tmp_path / "own").is_dir()
    assert (Path(odd["KERAS_HOME"]) / "keras.json").read_text() == "{}", "its settings go along"
    contained = start.start(Environment("e", "apptainer", image="/i"), Path("/w"), caches=folders).python
    assert '--bind "${TMPDIR:-}" ' in contained and "--pass TMPDIR " in contained


@pytest.mark.parametrize(("given", "found"), [({}, "site"), ({"TMPDIR": "/tmp"}, "site"), ({"TMPDIR": "own"}, "own")])
def test_the_tmp_that_slurm_sets_is_nobodys_wish(tmp_path: Path, given: dict[str, str], found: str) -> None:
    own = {name: str(tmp_path / value) for name, value in given.items()}
    setup = start.start(Environment("e"), Path("/w"), caches={"TMPDIR": f"{tmp_path}/site"}).setup
    assert bash("\n".join([*setup, "printenv TMPDIR"]), **own).stdout == f"{tmp_path / found}\n"


def test_a_cache_that_cannot_be_created_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = f"{tmp_path}/file/cache"
    folders = {"HF_HOME": folder, "KERAS_HOME": folder, "TORCH_HOME": f"{tmp_path}/torch"}
    setup = start.start(Environment("e", setup_before=["set -eu"]), Path("/w"), caches=folders).setup
    done = bash("\n".join([*setup, 'echo "${HF_HOME:-none} ${KERAS_HOME:-none} $TORCH_HOME"']), HF_HOME=f"{folder}/own")
    assert done.stdout == f"{folder}/own none {tmp_path}/torch\n", done.stderr
    assert f"HF_HOME={folder}/own: the folder cannot be created.\n" in done.stderr
    assert f"KERAS_HOME={folder}: the folder cannot be created, so the library uses its own default.\n" in done.stderr


def test_a_cache_at_home_that_jobs_no_longer_see_is_told_once(experiment: Compose, tmp_path: Path) -> None:
    composed = experiment()
    (tmp_path / ".cache" / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    home = {"HOME": str(tmp_path)}
    (told,) = caches.warnings(composed, derive(composed), home)
    folder = caches.folders(composed, derive(composed))["TORCH_HOME"]
    assert f"{folder}/hub (TORCH_HOME)" in told
    assert not list(caches.warnings(composed, derive(composed), {**home, "TORCH_HOME": "/x"}))
    Path(folder).mkdir(parents=True)
    assert not list(caches.warnings(composed, derive(composed), home))


def test_only_the_lines_that_are_needed_are_in_a_script() -> None:
    assert start.start(Environment("e"), Path("/w")).setup == ('export PYTHONHASHSEED="${PYTHONHASHSEED:-0}"',)
    assert shell_lines.modules([]) == shell_lines.user_lines("setup", []) == shell_lines.caches({}) == []
