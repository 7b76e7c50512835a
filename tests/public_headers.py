"""The #SBATCH lines of public job scripts for TRUBA, and how an experiment asks for the same.

Names of people, accounts and folders are replaced, and nodes are those of the test cluster. Each is told by what its
script does; the last ones are lines that no script of that collection has, but that others may have.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

# What a run decides itself: where its log lies, its name, its tasks, and how it is warned of its end.
OURS = frozenset({"output", "error", "open-mode", "job-name", "chdir", "signal", "array", "export"})
_SHORT = {
    "A": "account", "C": "constraint", "D": "chdir", "J": "job-name", "N": "nodes", "a": "array", "c": "cpus-per-task",
    "d": "dependency", "e": "error", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "t": "time",
    "w": "nodelist", "x": "exclude",
}  # fmt: skip
_FLAGS = frozenset(
    {"exclusive", "requeue", "no-requeue", "hold", "no-kill", "spread-job", "contiguous", "use-min-nodes"}
)


@dataclass(frozen=True)
class Header:
    """The options of a script's #SBATCH lines, the overrides that ask for the same, and what both are told."""

    does: str
    sbatch: str
    overrides: str
    # Words of the plan's refusal, and of the site's; empty: it is accepted.
    refused: str = ""
    site: str = ""

    def script(self, command: str = "true") -> str:
        """Return the script as people write it."""
        lines = [f"#SBATCH --{name}" + ("" if name in _FLAGS else f"={value}") for name, value in self.options()]
        return "\n".join(["#!/bin/bash", *lines, command, ""])

    def options(self) -> list[tuple[str, str]]:
        """Return its options, by their long names."""
        return options(self.sbatch)


def options(text: str) -> list[tuple[str, str]]:
    """Return the options of sbatch in a text, by their long names."""
    found, words = [], iter(shlex.split(text))
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
        else:
            name = _SHORT[word[1]]
            value = word[2:] or next(words)
        found.append((name, value))
    return found


def of_script(script: str) -> str:
    """Return the options of a script's #SBATCH lines."""
    return " ".join(re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE))


def asked(text: str) -> dict[str, object]:
    """Return what a job is given for these options, in one form, whichever options say it."""
    said = {name: value for name, value in options(text) if name not in OURS}
    nodes = int(said.pop("nodes", 1))
    tasks_per_node = int(said.pop("ntasks-per-node", 0)) or -(-int(said.pop("ntasks", 1)) // nodes)
    gpus = _gpus(said, nodes)
    per_gpu = int(said.pop("cpus-per-gpu", 0))
    cores = per_gpu * gpus if per_gpu else tasks_per_node * int(said.pop("cpus-per-task", 1))
    made: dict[str, object] = {"nodes": nodes, "cores": cores, "gpus": gpus}
    made["minutes"] = _minutes(said.pop("time", "1"))
    if memory := said.pop("mem-per-cpu", ""):
        made["memory_mb"] = cores * _megabytes(memory)
    elif memory := said.pop("mem-per-gpu", ""):
        made["memory_mb"] = gpus * _megabytes(memory)
    elif memory := said.pop("mem", ""):
        made["memory_mb"] = _megabytes(memory)
    said.setdefault("account", "ayse")
    said.setdefault("requeue", "")
    if said.pop("no-requeue", None) is not None:
        del said["requeue"]
    return {**made, **said}


def _gpus(said: dict[str, str], nodes: int) -> int:
    if "gpus" in said:
        return int(said.pop("gpus").split(":")[-1]) // nodes
    of_node = said.pop("gres", "") or said.pop("gpus-per-node", "")
    return int(of_node.split(":")[-1]) if of_node else 0


def _megabytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([MG]?)B?", text).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit == "G" else 1)


def _minutes(text: str) -> int:
    """As `man sbatch` has it."""
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours, minutes = (*parts, 0)[:2]
        return (int(days) * 24 + hours) * 60 + minutes
    return parts[0] * 60 + parts[1] if len(parts) == 3 else parts[0]


HEADERS = [
    # 1
    Header(
        "fine-tunes a vision-language model",
        "-J lora -p kolyoz-cuda -A proj1 -N 1 -n 1 -c 16 --gres=gpu:1 --mem=128G --time=08:00:00 --exclude=kolyoz2 "
        "--qos=normal --output=logs/%j.out --error=logs/%j.err",
        "resources.partition=kolyoz-cuda resources.account=proj1 resources.gpus=1 resources.cores=16 "
        "resources.memory_gb=128 resources.time=08:00:00 resources.exclude=kolyoz2 resources.qos=normal",
    ),
    # 2
    Header(
        "trains with DeepSpeed on a whole node",
        "-J grpo -p kolyoz-cuda -A proj1 -C H100 -N 1 --ntasks-per-node=4 -c 16 --gres=gpu:4 -t 2-00:00:00 "
        "--exclude=kolyoz2 --requeue -o %x-%j.out",
        "resources.partition=kolyoz-cuda resources.account=proj1 resources.constraint=H100 resources.gpus=4 "
        "resources.time=2-00:00:00 resources.exclude=kolyoz2",
    ),
    # 3
    Header(
        "evaluates five data sets in an array",
        "--array=0-4 -p kolyoz-cuda -A proj1 -N 1 -n 1 -c 16 --gres=gpu:1 --mem=200G -t 04:00:00 --exclude=kolyoz2 "
        "--requeue --qos=normal",
        "resources.partition=kolyoz-cuda resources.account=proj1 resources.memory_gb=200 resources.time=4h "
        "resources.exclude=[kolyoz2] resources.qos=normal",
    ),
    # 4
    Header(
        "a task for each GPU, in the partition for trying out, without an account",
        "-p debug -C akya-cuda -N 1 -n 4 --cpus-per-task=10 --gres=gpu:4 -t 04:00:00",
        "resources.partition=debug resources.constraint=akya-cuda resources.gpus=4 resources.time=04:00:00",
    ),
    # 6
    Header(
        "generates data with fewer cores than the site takes",
        "--array=0-2 -p barbun -A ayse -N 1 -n 1 -c 8 -t 02:00:00",
        "resources.partition=barbun resources.gpus=0 resources.cores=8 resources.time=2h",
        "barbun takes cores in multiples of 20",
        "barbun kuyruguna gonderilen islerin cekirdek sayisi 20 ve katlari olmalidir",
    ),
    Header(
        "trains 27 models in an array",
        "--array=0-26 -p akya-cuda -A ayse -N 1 -n 1 -c 10 --gres=gpu:1 -t 04:00:00",
        "resources.partition=akya-cuda resources.gpus=1 resources.time=4h",
    ),
    # 7
    Header(
        "8 cores with a GPU of barbun-cuda",
        "-p barbun-cuda -A ayse -N 1 -n 1 -c 8 --gres=gpu:1 --mem=32G -t 06:00:00",
        "resources.partition=barbun-cuda resources.cores=8 resources.memory_gb=32 resources.time=6h",
        "barbun-cuda requires cores in multiples of 20",
        "barbun-cuda kuyruguna gonderilen islerin cekirdek sayisi 20 ve katlari olmalidir",
    ),
    # 9
    Header(
        "ablations on half a node of orfoz",
        "--array=0-4 -p orfoz -A ayse -N 1 -n 1 -c 56 -t 12:00:00",
        "resources.partition=orfoz resources.gpus=0 resources.cores=56 resources.time=12h",
    ),
    Header(
        "trains, and sends mails",
        "-p akya-cuda -A ayse -N 1 -n 1 -c 10 --gres=gpu:1 --mem=40G -t 20:00:00 --mail-type=BEGIN,END,FAIL "
        "--mail-user=a@example.org",
        "resources.partition=akya-cuda resources.memory_gb=40 resources.time=20h "
        "'resources.mail_type=\"begin,end,fail\"' resources.mail_user=a@example.org",
    ),
    # 10
    Header(
        "two GPUs of palamut with the cores of one",
        "-p palamut-cuda -A proj1 -N 1 -n 1 -c 16 --gres=gpu:2 --exclude=palamut2 -t 1-00:00:00",
        "resources.partition=palamut-cuda resources.account=proj1 resources.gpus=2 resources.cores=16 "
        "resources.exclude=palamut2 resources.time=1d",
        "at least 16 per GPU",
        "Too few CPUs requested for the number of GPUs.",
    ),
    Header(
        "agents of a search, four at a time",
        "--array=0-3%4 -p kolyoz-cuda -A proj1 -N 1 -n 1 -c 16 --gres=gpu:1 -t 1-00:00:00",
        "resources.partition=kolyoz-cuda resources.account=proj1 resources.time=1d",
    ),
    # 11
    Header(
        "a whole node of barbun",
        "-p barbun -A ayse -N 1 -n 1 -c 40 -t 3-00:00:00",
        "resources.partition=barbun resources.gpus=0 resources.cores=40 resources.time=3d",
    ),
    Header(
        "a P100 by its feature, as long as the site allows",
        "-p barbun-cuda -C barbun-cuda -A ayse -N 1 -n 1 -c 20 --gres=gpu:1 -t 3-00:00:00",
        "resources.partition=barbun-cuda resources.constraint=barbun-cuda resources.time=3-00:00:00",
    ),
    # 13
    Header(
        "memory by the core, in megabytes",
        "-p akya-cuda -A ayse -N 1 -n 1 -c 20 --gres=gpu:2 --mem-per-cpu=15000 -t 2-00:00:00 --mail-type=ALL "
        "--mail-user=a@example.org",
        "resources.partition=akya-cuda resources.gpus=2 resources.memory_per_cpu_gb=14.6484375 resources.time=2d "
        "resources.mail_type=all resources.mail_user=a@example.org",
    ),
    # 16
    Header(
        "a node of orfoz for itself",
        "-p orfoz -A ayse -N 1 -n 1 -c 56 --exclusive -t 3-00:00:00",
        "resources.partition=orfoz resources.gpus=0 resources.cores=56 resources.exclusive=true resources.time=3d",
    ),
    Header(
        "4 cores with a GPU of akya-cuda",
        "-p akya-cuda -A ayse -N 1 -n 1 -c 4 --gres=gpu:1 -t 1-00:00:00",
        "resources.partition=akya-cuda resources.cores=4 resources.time=1d",
        "gives 10 cores with each GPU",
        "akya-cuda kuyruguna gonderilen islerin cekirdek sayisi 10 ve katlari olmalidir",
    ),
    Header(
        "a short test of everything, on any node",
        "-p debug -A ayse -N 1 -n 1 -c 4 -t 00:15:00",
        "resources.partition=debug resources.gpus=0 resources.cores=4 resources.time=15m",
    ),
    # 17
    Header(
        "four GPUs of akya-cuda",
        "-p akya-cuda -A ayse -N 1 -n 1 -c 40 --gres=gpu:4 -t 40:00:00",
        "resources.partition=akya-cuda resources.gpus=4 resources.time=40:00:00",
    ),
    # 18
    Header(
        "forty tasks on processors",
        "-p barbun -A ayse -N 1 -n 40 -t 2-00:00:00 --mail-type=END --mail-user=a@example.org",
        "resources.partition=barbun resources.gpus=0 resources.cores=40 resources.time=2d resources.mail_type=end "
        "resources.mail_user=a@example.org",
    ),
    # 21
    Header(
        "a notebook without a GPU in a partition with GPUs",
        "-p palamut-cuda -A proj1 -N 1 -n 1 -c 16 --mem=250G -t 12:00:00",
        "resources.partition=palamut-cuda resources.account=proj1 resources.gpus=0 resources.cores=16 "
        "resources.memory_gb=250 resources.time=12h",
        "palamut-cuda takes no job without a GPU",
        "palamut-cuda kuyruguna sadece GPU talebi olan isler gonderilebilir.",
    ),
    # Read beside them.
    Header(
        "nodes by their own feature",
        "-p palamut-cuda -C palamut -A proj1 -N 1 -n 1 -c 16 --gres=gpu:1 -t 01:00:00",
        "resources.partition=palamut-cuda resources.constraint=palamut resources.account=proj1",
    ),
    Header(
        "six days",
        "-p akya-cuda -A ayse -N 1 -n 1 -c 10 --gres=gpu:1 -t 6-00:00:00",
        "resources.partition=akya-cuda resources.time=6d",
        "akya-cuda allows 3-00:00:00",
        "Requested time limit is invalid",
    ),
    Header(
        "55 cores of orfoz, as older pages have it",
        "-p orfoz -A ayse -N 1 -n 1 -c 55 -t 01:00:00",
        "resources.partition=orfoz resources.gpus=0 resources.cores=55",
        "orfoz takes 56 or 112 cores on a node",
        "Orfoz kuyruguna gonderilen islerde node basina 56/112 cekirdek talep ediniz.",
    ),
    Header(
        "half a node of hamsi, as the documentation has it",
        "-p hamsi -A ayse -N 1 -n 1 -c 28 -t 01:00:00",
        "resources.partition=hamsi resources.gpus=0 resources.cores=28",
        "hamsi takes 56 cores on a node",
        "Hamsi kuyruguna gonderilen isleride node basina 56 cekirdek talep ediniz",
    ),
    Header(
        "20 cores with one GPU of akya-cuda",
        "-p akya-cuda -A ayse -N 1 -n 1 -c 20 --gres=gpu:1 -t 01:00:00",
        "resources.partition=akya-cuda resources.cores=20",
        "gives 10 cores with each GPU",
        "GPU basina 10 cekirdek",
    ),
    Header(
        "a job of a chain",
        "-p barbun -A ayse -N 1 -n 1 -c 20 -t 60 --dependency=singleton",
        "resources.partition=barbun resources.gpus=0 resources.cores=20 +resources.sbatch.dependency=singleton",
    ),
    # Others of their kinds.
    Header(
        "a feature of the file system, which no node here has",
        "-p orfoz -C weka -A ayse -N 1 -n 1 -c 112 -t 01:00:00",
        "resources.partition=orfoz resources.gpus=0 resources.cores=112 resources.constraint=weka",
        "no node of orfoz has the feature weka",
        "Invalid feature specification",
    ),
    Header(
        "two nodes with all their GPUs, of either kind",
        "-p kolyoz-cuda -C H100|H200 -A proj1 --nodes=2 --ntasks-per-node=4 -c 16 --gres=gpu:4 -t 3-00:00:00",
        "resources.partition=kolyoz-cuda 'resources.constraint=\"H100|H200\"' resources.account=proj1 "
        "resources.nodes=2 resources.gpus=4 resources.time=3d",
    ),
    Header(
        "two nodes of processors",
        "-p orfoz -A ayse -N 1 --ntasks-per-node=112 -t 1-00:00",
        "resources.partition=orfoz resources.gpus=0 resources.cores=112 resources.time=1-00:00:00",
    ),
    Header(
        "GPUs and cores by the GPU",
        "-p barbun-cuda -A ayse -N 1 --gpus=2 --cpus-per-gpu=20 -t 0-12",
        "resources.partition=barbun-cuda resources.gpus=2 resources.cores=40 resources.time=12h",
    ),
    Header(
        "GPUs with their type",
        "-p akya-cuda -A ayse -N 1 -n 10 --gres=gpu:v100:1 -t 02:00:00",
        "resources.partition=akya-cuda 'cluster.gpu_option=\"--gres=gpu:v100:{gpus}\"' resources.time=2h",
    ),
    Header(
        "GPUs by the node, and a node by its name",
        "-p akya-cuda -A ayse -N 1 -n 1 -c 20 --gpus-per-node=2 -w akya3 -t 02:00:00",
        "resources.partition=akya-cuda resources.gpus=2 'cluster.gpu_option=\"--gpus-per-node={gpus}\"' "
        "resources.nodelist=akya3 resources.time=2h",
    ),
    Header(
        "more cores than its GPU brings, where that is allowed",
        "-p barbun-cuda -A ayse -N 1 -n 1 -c 40 --gres=gpu:1 -t 01:00:00",
        "resources.partition=barbun-cuda resources.cores=40",
    ),
    Header(
        "all memory of a node",
        "-p smp -A ayse -N 1 -n 1 -c 224 --mem=0 -t 01:00:00",
        "resources.partition=smp resources.gpus=0 resources.cores=224 +resources.sbatch.mem=0",
    ),
    Header(
        "not put back into the queue",
        "-p akya-cuda -A ayse -N 1 -n 1 -c 10 --gres=gpu:1 --no-requeue -t 01:00:00",
        "resources.partition=akya-cuda cluster.requeue=false",
    ),
    Header(
        "what else sbatch takes",
        "-p barbun -A ayse -N 1 -n 1 -c 20 -t 01:00:00 --begin=now+1hour --nice=100 --comment=thesis "
        "--hint=nomultithread --switches=1 --no-kill --kill-on-invalid-dep=yes --mem-bind=local "
        "--distribution=block:cyclic --profile=none --wckey=own",
        "resources.partition=barbun resources.gpus=0 resources.cores=20 "
        "'+resources.sbatch={begin: now+1hour, nice: 100, comment: thesis, hint: nomultithread, switches: 1, "
        "no-kill: true, kill-on-invalid-dep: \"yes\", mem-bind: local, distribution: \"block:cyclic\", profile: none, "
        "wckey: own}'",
    ),
    Header(
        "whichever of two partitions comes first",
        "-p akya-cuda,barbun-cuda -A ayse -N 1 -n 1 -c 20 --gres=gpu:1 -t 01:00:00",
        "'resources.partition=\"akya-cuda,barbun-cuda\"'",
        "resources.partition=auto",
        "GPU basina 10 cekirdek",
    ),
    Header(
        "a partition by half of its name",
        "-p kolyoz -A proj1 -N 1 -n 1 -c 16 --gres=gpu:1 -t 01:00:00",
        "resources.partition=kolyoz resources.account=proj1",
        "Did you mean kolyoz-cuda",
        "invalid partition specified: kolyoz",
    ),
    Header(
        "memory by the GPU",
        "-p akya-cuda -A ayse -N 1 -n 1 -c 20 --gres=gpu:2 --mem-per-gpu=60G -t 01:00:00",
        "resources.partition=akya-cuda resources.gpus=2 resources.memory_gb=120",
    ),
    Header(
        "more memory than a node has",
        "-p hamsi -A ayse -N 1 -n 1 -c 56 --mem=256G -t 01:00:00",
        "resources.partition=hamsi resources.gpus=0 resources.memory_gb=256",
        "a node of hamsi has 192 GB",
        "Requested node configuration is not available",
    ),
    Header(
        "more GPUs than a node has",
        "-p barbun-cuda -A ayse -N 1 -n 1 -c 80 --gres=gpu:4 -t 01:00:00",
        "resources.partition=barbun-cuda resources.gpus=4",
        "a node of barbun-cuda has 2 GPUs",
        "Requested node configuration is not available",
    ),
    Header(
        "a GPU of a partition without any",
        "-p orfoz -A ayse -N 1 -n 1 -c 56 --gres=gpu:1 -t 01:00:00",
        "resources.partition=orfoz resources.gpus=1 resources.cores=56",
        "orfoz has no GPUs",
        "Requested node configuration is not available",
    ),
    # Only Slurm knows these.
    Header(
        "a reservation for a course, which is over",
        "-p barbun -A ayse -N 1 -n 1 -c 20 --reservation=course -t 01:00:00",
        "resources.partition=barbun resources.gpus=0 resources.reservation=course",
        site="Requested reservation is invalid",
    ),
    Header(
        "another one's account",
        "-p barbun -A proj9 -N 1 -n 1 -c 20 -t 01:00:00",
        "resources.partition=barbun resources.gpus=0 resources.account=proj9",
        site="Invalid account or account/partition combination specified",
    ),
    Header(
        "a node that there is not any more",
        "-p barbun -A ayse -N 1 -n 1 -c 20 --exclude=barbun[45-46] -t 01:00:00",
        "resources.partition=barbun resources.gpus=0 'resources.exclude=\"barbun[45-46]\"'",
        site="Invalid node name specified",
    ),
]  # fmt: skip
