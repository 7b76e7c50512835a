"""What cannot work on a partition's GPUs: code for others, a newer CUDA than the driver's, bfloat16, a large batch."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from truba_runner.code import network_size
from truba_runner.config.partitions import facts_of
from truba_runner.config.schema import Experiment
from truba_runner.doctor import Patient, where
from truba_runner.environment import probe, report
from truba_runner.errors import Refused
from truba_runner.launch.prepare import Checks, Provision
from truba_runner.rules.experiment import plan
from truba_runner.rules.gpus import architecture, builds, memory, wheels
from truba_runner.storage.package_files import config_names, shipped

Compose = Callable[..., Experiment]
GPUS = ("barbun-cuda", "akya-cuda", "palamut-cuda", "kolyoz-cuda")
# As environment/report.py reads them in the wheels themselves: torch/version.py and lib/libtorch_python.so,
# tensorflow/python/platform/build_info.py. torch's cu118 and cu126 are not on PyPI for each version: docs/gpus.md.
TORCH_DEFAULT = ("2.14.1", "13.0", "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")
TORCH_2_10 = ("2.10.0", "12.8", "sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")
TORCH_2_7 = ("2.7.1", "12.6", "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90")
TENSORFLOW = ("2.21.0", "12.5.1", "sm_60 sm_70 sm_80 sm_89 sm_90 compute_90")


def held(torch: tuple[str, str, str] = TORCH_DEFAULT, tensorflow: tuple[str, str, str] = TENSORFLOW) -> dict[str, Any]:
    made = {"torch": torch, "tensorflow": tensorflow}
    others = {"keras": "3.15.1", "fastai": "2.8.12", "keras-tuner": "1.4.8"}
    return {
        "python": "3.11.7",
        "executable": "/x",
        "packages": {**others, **{name: one[0] for name, one in made.items()}},
        "cuda": {name: one[1] for name, one in made.items() if one[1]},
        "architectures": {name: one[2].split() for name, one in made.items() if one[2]},
    }


def on(experiment: Compose, partition: str, name: str = "pets", *more: str) -> Experiment:
    feature = ["resources.constraint=H100"] if partition == "kolyoz-cuda" else []
    return experiment(f"resources.partition={partition}", *feature, *more, name=name)


def refused(one: Experiment, found: dict[str, Any]) -> str:
    return "\n".join(map(str, builds.problems(one, found, "environment=own")))


@pytest.mark.parametrize(
    ("name", "found", "runs"),
    [
        ("pets", held(), ("palamut-cuda", "kolyoz-cuda")),
        ("pets", held(torch=TORCH_2_10), ("akya-cuda", "palamut-cuda", "kolyoz-cuda")),
        ("pets", held(torch=TORCH_2_7), GPUS),
        ("mnist", held(), GPUS),
        ("pets", held(torch=("2.7.1+cu118", "11.8", "")), GPUS),
        ("pets", held(torch=("2.14.0+cu130", "13.0", "")), ("palamut-cuda", "kolyoz-cuda")),
        # Nothing is known of them, or not enough: they are not refused.
        ("pets", {}, GPUS),
        ("pets", held(torch=("2.5.0a0+nv24.10", "12.6", "")), GPUS),
    ],
    ids="default 2.10 cu126 tensorflow cu118 cu130 unknown own".split(),
)
def test_a_framework_runs_where_it_has_code_for_the_gpu(
    experiment: Compose, name: str, found: dict[str, Any], runs: tuple[str, ...]
) -> None:
    assert tuple(one for one in GPUS if not refused(on(experiment, one, name), found)) == runs


def test_the_refusal_says_what_is_there_what_is_built_for_and_what_can(experiment: Compose) -> None:
    text = refused(on(experiment, "akya-cuda"), held())
    assert text.startswith("environment=own: torch 2.14.1: it has code for sm_75, sm_80, ")
    assert "the V100 of akya-cuda is sm_70 (conf/cluster/truba.yaml, compute_capability)" in text
    assert "built for CUDA 13.0, and the driver 565.57.01 of akya-cuda supports CUDA 12.7 at most" in text
    assert "It can run on palamut-cuda (contracted projects only) or kolyoz-cuda" in text
    assert "torch 2.6 … 2.14 (cu126)" in text and "cu130" not in text
    assert "sm_60" in refused(on(experiment, "barbun-cuda"), held())
    # A mixed partition has the family's GPUs.
    family = experiment("resources.partition=debug", "resources.constraint=akya-cuda", name="pets")
    assert "sm_70" in refused(family, held())


def test_an_image_with_a_newer_cuda_than_the_drivers_is_refused_and_an_older_one_is_not(experiment: Compose) -> None:
    """All numbers of a CUDA count for PTX, which the driver itself compiles; the first one for kernels."""
    volta = "sm_70 sm_80"
    assert "CUDA 13.1, and the driver 565.57.01" in refused(
        on(experiment, "akya-cuda"), held(torch=("2.9", "13.1", volta))
    )
    assert not refused(on(experiment, "akya-cuda"), held(torch=("2.9", "12.9", volta)))
    assert "CUDA 12.9, and the driver" in refused(
        on(experiment, "akya-cuda"), held(torch=("2.9", "12.9", "sm_60 compute_60"))
    )
    assert not refused(on(experiment, "akya-cuda"), held(torch=("2.9", "12.6", "sm_60 compute_60")))
    unknown = on(experiment, "akya-cuda", "pets", "cluster.partitions.akya-cuda.driver_cuda=''")
    assert not refused(unknown, held(torch=("2.9", "13.1", volta)))


def test_a_framework_for_cpus_is_refused_on_gpus_and_not_elsewhere(experiment: Compose) -> None:
    found = {**held(torch=("2.13.0+cpu", "", "")), "without_cuda": ["torch"]}
    assert "built for CPUs only, and akya-cuda has GPUs (V100)" in refused(on(experiment, "akya-cuda"), found)
    assert not refused(experiment("resources.partition=orfoz", "resources.gpus=0", name="pets"), found)
    assert not refused(experiment(name="pets", cluster="local"), found)


def test_a_cudnn_without_kernels_for_old_gpus_is_warned_of(experiment: Compose) -> None:
    def warned(partition: str, cudnn: str) -> str:
        return " ".join(builds.warnings(on(experiment, partition, "mnist"), {**held(), "cudnn": {"tensorflow": cudnn}}))

    assert "loads cuDNN 9.24.0.43, which has no kernels for V100" in warned("akya-cuda", "9.24.0.43")
    assert not warned("akya-cuda", "9.10.2.21") and not warned("palamut-cuda", "9.24.0.43")


@pytest.mark.parametrize(
    ("listed", "capability", "kernels", "ptx"),
    [
        ("sm_60", (6, 1), True, False),
        ("sm_86", (8, 0), False, False),
        ("sm_80", (8, 6), True, False),
        ("sm_80", (9, 0), False, False),
        ("compute_80", (9, 0), False, True),
        ("sm_90a compute_90a", (9, 0), True, True),
        ("sm_100a compute_100a", (12, 0), False, False),
        ("sm_120", (12, 0), True, False),
        ("nonsense", (7, 0), False, False),
    ],
)
def test_which_code_runs_on_which_gpu(listed: str, capability: tuple[int, int], kernels: bool, ptx: bool) -> None:
    names = listed.split()
    assert architecture.has_kernels(names, capability) == kernels and architecture.has_ptx(names, capability) == ptx


def test_the_table_of_wheels_agrees_with_the_wheels_that_were_read() -> None:
    read = [("torch", "2.10.0+cu128", TORCH_2_10), ("torch", "2.7.1+cu126", TORCH_2_7)]
    for framework, version, (_, cuda, listed) in [*read, ("torch", "2.14.1+cu130", TORCH_DEFAULT)]:
        row = wheels.of_version(framework, version)
        assert row and (row.cuda, list(row.architectures)) == (cuda, listed.split())
    assert wheels.of_version("torch", "2.14.1") is None, "whose it is cannot be seen"


# -- the report ----------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages with the files of the real ones that are read, and nothing else on the path."""
    torch, tensorflow = tmp_path / "torch", tmp_path / "tensorflow" / "python" / "platform"
    (torch / "lib").mkdir(parents=True)
    tensorflow.mkdir(parents=True)
    for package in (torch, tmp_path / "tensorflow"):
        (package / "__init__.py").write_text("raise ImportError('imported')\n")
    (torch / "version.py").write_text("__version__ = '2.14.1+cu130'\ncuda: Optional[str] = '13.0'\n")
    (torch / "lib" / "libtorch_python.so").write_bytes(b"\0sm_90a\0\xff" * 9 + b"sm_75 sm_80 sm_120 compute_120\0\xfe")
    (tensorflow / "build_info.py").write_text(
        "build_info = collections.OrderedDict([('cuda_compute_capabilities', ['sm_60', 'sm_70', 'compute_90']), "
        "('cuda_version', '12.5.1'), ('is_cuda_build', True)])\n"
    )
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    for package in ("torch", "tensorflow"):  # which an earlier test of this process may have imported
        monkeypatch.delitem(sys.modules, package, raising=False)
    return tmp_path


def test_what_frameworks_were_built_for_is_read_in_their_files(site: Path) -> None:
    found = report.report()
    assert found["architectures"] == {
        "torch": ["sm_75", "sm_80", "sm_120", "compute_120"],
        "tensorflow": ["sm_60", "sm_70", "sm_90", "compute_90"],
    }
    assert found["cuda"] == {"torch": "13.0", "tensorflow": "12.5.1"} and found["without_cuda"] == []


def test_a_tensorflow_of_ones_own_for_one_gpu_has_kernels_for_it(site: Path, experiment: Compose) -> None:
    """Its configure.py calls kernels and PTX code together compute_70; the driver compiles PTX of no newer CUDA."""
    file = site / "tensorflow" / "python" / "platform" / "build_info.py"
    file.write_text("{'cuda_compute_capabilities': ['compute_70'], 'cuda_version': '12.8', 'is_cuda_build': True}\n")
    listed = " ".join(report.report()["architectures"]["tensorflow"])
    found = held(tensorflow=("2.19.0", "12.8", listed))
    assert not refused(on(experiment, "akya-cuda", "mnist"), found)
    assert "sm_60" in refused(on(experiment, "barbun-cuda", "mnist"), found)


def test_that_a_framework_is_for_cpus_is_read_and_not_concluded(site: Path) -> None:
    (site / "torch" / "version.py").write_text("cuda: Optional[str] = None\n")
    file = site / "tensorflow" / "python" / "platform" / "build_info.py"
    file.write_text("build_info = collections.OrderedDict([('is_cuda_build', False)])\n")
    assert report.report()["without_cuda"] == ["tensorflow", "torch"]
    file.unlink()
    (site / "torch" / "version.py").write_text("")
    (site / "torch" / "lib" / "libtorch_python.so").write_bytes(b"")
    found = report.report()
    assert found["without_cuda"] == [] and found["architectures"] == {}


def test_the_installed_frameworks_say_what_they_were_built_for() -> None:
    found = report.report()
    assert {"torch", "tensorflow"} <= set(found["architectures"]) | set(found["without_cuda"])


# -- the plan ------------------------------------------------------------------------------------------------------


def test_the_plan_refuses_before_the_queue_also_a_dry_run(experiment: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "report", lambda: held())
    one = on(experiment, "akya-cuda", "pets", "environment=inherit", "dry_run=true")
    with pytest.raises(Refused, match="sm_70"):
        Provision(provide=False).prepare(Checks().check(one), "")
    other = on(experiment, "palamut-cuda", "pets", "environment=inherit", "dry_run=true")
    assert Provision(provide=False).prepare(Checks().check(other), "").run


def test_an_image_with_cuda_13_is_refused_on_driver_565_before_the_queue(experiment: Compose, tmp_path: Path) -> None:
    """What its own torch says, read when it was checked, also where it has code for the GPU."""
    image = tmp_path / "pytorch-26.03-py3.sif"
    image.touch()
    chosen = ["environment=apptainer", f"environment.image={image}", "dry_run=true"]
    found = held(torch=("2.11.0a0+nv26.03", "13.1", "sm_70 sm_75 sm_80 sm_90 sm_100 sm_120 compute_120"))
    for partition in ("barbun-cuda", "akya-cuda", "palamut-cuda"):
        one = on(experiment, partition, "pets", *chosen)
        probe._keep(one.environment, found)
        told = refusal(one, Checks(), Provision(provide=False))
        if partition == "palamut-cuda":
            assert not told, "its driver is not known"
        else:
            assert f"built for CUDA 13.1, and the driver 565.57.01 of {partition} supports CUDA 12.7 at most" in told
            assert told.startswith(f"environment=apptainer ({image}): torch 2.11.0a0+nv26.03: ")
            assert "It can run on palamut-cuda (contracted projects only)" in told


def test_a_report_is_kept_until_what_it_reports_changes(experiment: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of an older version of the program lack what is checked now."""
    chosen = experiment("environment.modules=[apps/ai]")
    probe._keep(chosen.environment, held())
    assert probe.known(chosen) == held()
    monkeypatch.setattr(probe, "_program", lambda: "of the next version")
    assert probe.known(chosen) == {}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_bfloat16_is_refused_where_there_is_none(experiment: Compose, policy: str) -> None:
    for partition in ("barbun-cuda", "akya-cuda"):
        with pytest.raises(Refused) as told:
            plan(on(experiment, partition, "mnist", f"train.mixed_precision={policy}"))
        assert "has no bfloat16" in str(told.value) and "compute_capability" in str(told.value)
        half = policy.replace("bfloat", "float")
        assert f"train.mixed_precision={half} or resources.partition=palamut-cuda or kolyoz-cuda" in str(told.value)
    for partition in ("palamut-cuda", "kolyoz-cuda"):
        assert plan(on(experiment, partition, "mnist", f"train.mixed_precision={policy}"))
    assert plan(experiment("resources.partition=orfoz", "resources.gpus=0", f"train.mixed_precision={policy}"))


def test_a_search_that_tries_bfloat16_is_refused_too(experiment: Compose) -> None:
    space = "+sweep.space={train.mixed_precision: {choice: [mixed_float16, mixed_bfloat16]}}"
    search = ["sweep=random", "sweep.objective=val_loss", space, "resources.partition=akya-cuda"]
    with pytest.raises(Refused, match=r"sweep.space.train.mixed_precision=mixed_bfloat16: V100 of akya-cuda"):
        plan(experiment(*search))


def test_half_precision_on_p100_is_told_to_save_memory_alone(experiment: Compose) -> None:
    def warned(partition: str) -> str:
        return " ".join(plan(on(experiment, partition, "pets_deep_fp16")).warnings)

    assert "saves memory on P100, but no time" in warned("barbun-cuda") and "no time" not in warned("akya-cuda")


# -- memory --------------------------------------------------------------------------------------------------------

NETWORK = """\
import keras
import numpy as np
from keras import layers
@keras.saving.register_keras_serializable()
def scaled(x):
    return np.float32(x)
def build_model(units=8, **more):
    x = inputs = keras.Input(shape=(32, 32, 3))
    x = layers.Conv2D(units, 3, padding="same", activation="relu", kernel_regularizer=keras.regularizers.l2(1e-4))(x)
    x = layers.BatchNormalization()(x)
    shortcut = x
    x = layers.Conv2D(units, 3, padding="same")(x)
    x = layers.add([x, shortcut]) if more.get("function") else layers.Add()([x, shortcut])
    x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(10)(x))
"""


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long another test may keep the machine."""
    monkeypatch.setattr(network_size, "PATIENCE_SECONDS", 300.0)


def size_of(experiment: Compose, tmp_path: Path, text: str, *overrides: str) -> memory.Size | None:
    (tmp_path / "own.py").write_text(text)
    return network_size.Sizes().of(experiment(*overrides), tmp_path / "own.py")


def test_a_networks_size_is_counted_from_its_shapes(experiment: Compose, tmp_path: Path) -> None:
    size = size_of(experiment, tmp_path, NETWORK)
    # Convolutions, normalization, the last layer; kept are the inputs of the second convolution and the last layer.
    trainable = (27 * 8 + 8) + 2 * 8 + (72 * 8 + 8) + (16 * 16 * 8 + 1) * 10
    assert size == memory.Size(trainable, 2 * 8, 32 * 32 * 8 + 16 * 16 * 8)


@pytest.mark.parametrize(
    "text",
    [
        NETWORK.replace("return keras", "x.unknown\n    return keras"),
        NETWORK.replace("layers.Flatten()", "layers.MultiHeadAttention(2, 2)"),
        NETWORK.replace("layers.Flatten()", "layers.Flatten(trainable=False)"),
        NETWORK.replace("x = layers.Flatten()(x)", "x = keras.ops.reshape(x, (-1, 4))"),
        NETWORK.replace("import numpy as np", "open(__file__, 'w').write('x')"),
        NETWORK.replace("import numpy as np", "import os; os.remove(__file__)"),
        NETWORK.replace("import numpy as np", "import subprocess; subprocess.run(['rm', __file__])"),
        "while True: pass",
        "def build_model(): return None",
        "import keras\nclass Own(keras.Model): pass\ndef build_model(): return Own()",
    ],
    ids="attribute layer frozen operation writes removes runs endless nothing subclass".split(),
)
def test_what_is_not_known_is_not_guessed(experiment: Compose, tmp_path: Path, text: str) -> None:
    assert size_of(experiment, tmp_path, text) is None
    assert (tmp_path / "own.py").read_text() == text, "executing it has changed nothing"


# Each tries something, and the network has a unit for each that did not fail.
TRIES = """\
import multiprocessing, os, resource, shutil, signal, socket, sqlite3, subprocess, tempfile, threading, time
import keras
here = os.path.dirname(__file__)
multiprocessing.set_start_method("spawn")
def fork():
    if not os.fork():
        open(here + "/forked", "w").close()
        os._exit(0)
tries = {
    "write": lambda: open(here + "/new", "w"),
    "append": lambda: os.open(here + "/new", os.O_WRONLY | os.O_CREAT),
    "temporary": lambda: tempfile.mkstemp(dir=here),
    "folder": lambda: os.makedirs(here + "/folder"),
    "pipe": lambda: os.mkfifo(here + "/pipe"),
    "remove": lambda: os.remove(__file__),
    "touch": lambda: os.utime(__file__, (0, 0)),
    "move": lambda: shutil.move(__file__, here + "/moved"),
    "database": lambda: sqlite3.connect(here + "/database").execute("create table t (x)"),
    "socket": lambda: socket.create_connection(("127.0.0.1", 9), 1),
    "bind": lambda: socket.socket(socket.AF_UNIX).bind(here + "/socket"),
    "fork": fork,
    "run": lambda: subprocess.run(["touch", here + "/run"]),
    "shell": lambda: os.system("touch " + here + "/shell"),
    "spawn": lambda: multiprocessing.Process(target=print).start(),
    "shared": lambda: __import__("multiprocessing.shared_memory").shared_memory.SharedMemory(create=True, size=8),
    "kill": lambda: os.kill(os.getppid(), signal.SIGCHLD),
    "sleep": lambda: time.sleep(30),
    "limits": lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)),
    "memory": lambda: bytearray(2 << 30),
    "secrets": lambda: os.environ["TRUBA_SECRET"],
    "input": input,
}
done = []
for name, one in tries.items():
    try:
        one()
        done.append(name)
    except BaseException:
        pass
print("x" * 100_000)
def build_model(**options):
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1 + len(done), use_bias=False)])
"""


def test_executing_a_jobs_module_at_submission_does_no_harm(
    experiment: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can change no file, open no connection, start no process, and it inherits nothing."""
    monkeypatch.setenv("TRUBA_SECRET", "x")
    (tmp_path / "jobs").mkdir()
    size = size_of(experiment, tmp_path / "jobs", TRIES)
    assert size and size.trainable == 1, "so many of them were done"
    assert [one.name for one in (tmp_path / "jobs").iterdir()] == ["own.py"]
    assert (tmp_path / "jobs" / "own.py").stat().st_mtime > 0


@pytest.mark.parametrize("text", ["while True: pass", "import os\nwhile True: os.write(1, b'x' * 10**7)"])
def test_a_module_that_does_not_end_costs_a_second_of_processor_time(
    experiment: Compose, tmp_path: Path, text: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert size_of(experiment, tmp_path, text) is None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_a_module_that_waits_is_left_and_not_executed_again(
    experiment: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_size, "PATIENCE_SECONDS", 1.0)
    (tmp_path / "own.py").write_text("import threading\nthreading.Event().wait(300)\n")
    sizes, executed = network_size.Sizes(), []
    counted = network_size._counted
    monkeypatch.setattr(network_size, "_counted", lambda *given: executed.append(given) or counted(*given))
    for units in (1, 2, 3):
        assert sizes.of(experiment(f"+job.options.units={units}"), tmp_path / "own.py") is None
    assert len(executed) == 1


@pytest.mark.parametrize(
    "text",
    [
        NETWORK.replace("x = inputs", "keras.config.set_dtype_policy('mixed_float16')\n    x = inputs"),
        NETWORK.replace(
            "import numpy as np", "import tensorflow as tf; tf.keras.mixed_precision.set_global_policy('f')"
        ),
        NETWORK.replace("layers.Flatten()", "layers.Flatten(dtype='float16')"),
        NETWORK.replace("x = layers.Flatten()(x)", "with keras.RematScope(): x = layers.Flatten()(x)"),
    ],
    ids="policy global layer recomputed".split(),
)
def test_a_network_that_may_need_less_than_its_shapes_say_is_not_counted(
    experiment: Compose, tmp_path: Path, text: str
) -> None:
    assert size_of(experiment, tmp_path, text) is None


def test_nothing_is_counted_twice_or_that_only_might_be_kept(experiment: Compose, tmp_path: Path) -> None:
    plain = size_of(experiment, tmp_path, NETWORK)
    twice = NETWORK.replace(
        "x = layers.Flatten()(x)",
        "side = layers.Dense(1)(x); x = layers.Dropout(0.0)(x)\n    x = layers.Flatten()(x)",
    ).replace("layers.Dense(10)(x))", "[layers.Dense(10)(x), side])")
    size = size_of(experiment, tmp_path, twice)
    assert plain and size == replace(plain, trainable=plain.trainable + 9)
    compiled = (
        NETWORK.replace("return keras.Model(", "made = keras.Model(")
        + "    made.compile(optimizer='sgd')\n    return made\n"
    )
    size = size_of(experiment, tmp_path, compiled)
    assert size == memory.Size(0, plain.trainable + plain.fixed, plain.kept), "the optimizer is the job's own"


def test_an_obvious_overrun_is_refused_with_the_batch_that_fits(experiment: Compose) -> None:
    size = memory.Size(trainable=25_000_000, fixed=0, kept=10_000_000)

    def told(partition: str, *overrides: str) -> str:
        one = on(experiment, partition, "mnist", "train.jit_compile=false", *overrides)
        return " ".join(map(str, memory.problems(one, size)))

    # 0.28 GB for weights and Adam's two numbers of each; 38.1 MB an example.
    text = told("akya-cuda", "train.batch_size=1024")
    assert (
        "train.batch_size=1024: the training needs at least 38.4 GB" in text and "V100 of akya-cuda has 16 GB" in text
    )
    assert "Set train.batch_size=256 or less, or resources.partition=palamut-cuda or kolyoz-cuda" in text
    assert not told("akya-cuda", "train.batch_size=256") and not told("palamut-cuda", "train.batch_size=1024")
    assert not told("akya-cuda", "train.batch_size=1024", "resources.gpus=4"), "each has a quarter"
    assert told("akya-cuda", "train.batch_size=1024", "resources.gpus=4", "train.batch_scaling=per_replica")
    assert not told("akya-cuda", "train.batch_size=512", "train.mixed_precision=mixed_float16")
    deep = memory.Size(0, 0, 100_000_000)
    own = on(experiment, "akya-cuda", "mnist", "train.jit_compile=false", "train.batch_size=null")
    assert not list(memory.problems(own, deep)), "the job's own batches may be of any size"
    assert list(memory.problems(replace(own, job=replace(own.job, backend="fastai")), deep)), "64"
    # XLA computes outputs again where memory is short; Keras uses it on one device, and not where this is set.
    xla = ["train.batch_size=1024", "train.jit_compile=true"]
    assert not told("akya-cuda", *xla) and told("akya-cuda", *xla, "train.deterministic=true")
    assert "Set train.batch_size" not in " ".join(
        map(str, memory.problems(on(experiment, "akya-cuda", "mnist"), memory.Size(2_000_000_000, 0, 1)))
    )


def test_a_feature_may_have_gpus_with_more_memory(experiment: Compose) -> None:
    size, where = memory.Size(0, 0, 25_000_000), ["resources.partition=kolyoz-cuda", "train.batch_size=1024"]
    where.append("train.jit_compile=false")
    assert list(memory.problems(experiment(*where, "resources.constraint=H100"), size))
    assert not list(memory.problems(experiment(*where, "resources.constraint=H200"), size))


def test_fastais_networks_are_bounded_by_their_architecture(experiment: Compose) -> None:
    """Weights and convolutions' outputs of an image of 224 × 224 pixels, as published for these networks."""
    assert memory.RESNETS["resnet50"].at(224)[1:] == (23_508_032, 11_113_984)
    assert round(memory.RESNETS["resnet18"].at(224)[2] / 1e6, 2) == 2.48
    large = on(experiment, "akya-cuda", "pets", "job.options.arch=resnet50", "train.batch_size=512")
    with pytest.raises(Refused, match=r"Set train.batch_size=256 or less"):
        Checks().check(large)


# What is installed, as the page's table calls it: package, what report.py reads in it.
ENVIRONMENTS = {
    "tensorflow": ("tensorflow 2.18 to 2.21 (PyPI)", TENSORFLOW),
    "torch, default": ("torch 2.9 to 2.14, cu130 (PyPI from 2.11)", TORCH_DEFAULT),
    "torch, cu126": ("torch 2.6 to 2.14, cu126 (PyPI: 2.7)", TORCH_2_7),
    "unknown": ("", ()),
}
COLUMNS = {"P100": "P100", "V100": "V100", "A100": "A100", "H100/H200": "H100, H200"}


def page() -> dict[str, dict[str, str]]:
    """The packages' rows in docs/gpus.md, by package and column."""
    text = (Path(__file__).parents[3] / "docs" / "gpus.md").read_text()
    lines = text.partition("## The packages")[2].partition("\nSo on")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: dict(zip(rows[0], row)) for row in rows[2:]}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_each_shipped_experiment_is_allowed_or_refused_on_each_partition_as_the_page_says(
    experiment: Compose, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    """By a submission, and by `truba doctor`'s table."""
    package, (version, *built) = ENVIRONMENTS[environment][0], ENVIRONMENTS[environment][1] or ("",)
    framework, row = package.partition(" ")[0], page().get(package, {})
    found: dict[str, Any] = {}
    if row:
        assert built[0].startswith(row["CUDA"])
        assert built[1].split() == [
            f"{'compute' if index else 'sm'}_{one.replace('.', '')}"
            for index, part in enumerate(row["code for"].split(", PTX "))
            for one in part.split()
        ]
        found = held()
        found["packages"] = {
            name: one for name, one in found["packages"].items() if name not in {"torch", "tensorflow"}
        } | {framework: version}
        found |= {"cuda": {framework: built[0]}, "architectures": {framework: built[1].split()}}
    monkeypatch.setattr(probe, "known", lambda _: found)
    monkeypatch.setattr(probe, "found_here", lambda _: found or "it cannot be entered here")
    checks, provision, names = Checks(), Provision(provide=False), sorted(config_names("experiment"))
    assert len(names) >= 7
    experiments = {name: experiment(name=name) for name in names}
    table = next(iter(where.table(Patient(experiments["mnist"], others=experiments)))).table
    rows = {row[0]: row[1:] for row in table}
    for partition, facts in experiments["mnist"].cluster.partitions.items():
        for constraint in facts.families or ["", *facts.feature_gpu_memory_gb]:
            known = facts_of(experiments["mnist"].cluster, partition, constraint)
            for column, (name, one) in enumerate(experiments.items()):
                needs = "tensorflow" if one.job.backend == "keras" else "torch"
                expected = not row or needs == framework and (not known.gpu or row[COLUMNS[known.gpu]] == "yes")
                gpus = 1 if known.gpus_per_node else 0
                resources = replace(one.resources, partition=partition, constraint=constraint, gpus=gpus)
                told = refusal(replace(one, resources=resources), checks, provision)
                place = (environment, partition, constraint, name)
                assert (not told) == expected, (place, told)
                assert expected or ("has no" if needs != framework else known.gpu) in told, (place, told)
                if facts.families or not constraint:
                    label = f"{partition} ({constraint})" if constraint else partition
                    assert (rows[label][column] == "yes") == expected, (place, rows)


def refusal(one: Experiment, checks: Checks, provision: Provision) -> str:
    """What a submission that knows the environment says; empty if it is accepted."""
    try:
        checked = checks.check(one)
        if probe.known(one):
            probe.found(one, lambda _: None)
        provision.prepare(checked, "")
    except Refused as told:
        return str(told)
    return ""


def test_the_shipped_networks_are_counted(experiment: Compose) -> None:
    """Else that none of them is refused for its size says nothing."""
    sizes = network_size.Sizes()
    for name in sorted(config_names("experiment")):
        one = experiment(name=name)
        assert bool(sizes.of(one, shipped("jobs") / f"{one.job.module}.py")) == (name != "mnist_search"), name


def test_the_stand_in_counts_a_real_networks_weights() -> None:
    """What Keras itself says of the shipped networks; tests/training builds them."""
    program = shipped("jobs")
    counts = {"mnist": 118_282, "fraud": 256 * 31 + 257 * 256 + 257, "text_classification": 2_806_273}
    for module, weights in counts.items():
        size = network_size._counted(program / f"{module}.py", {})
        assert size and size.trainable == weights, module
