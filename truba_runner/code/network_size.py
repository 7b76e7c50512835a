"""Find out at submission how large a job's network is, in a second and without a framework, where that can be had."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import truba_runner
from truba_runner.config.schema import Experiment
from truba_runner.rules.gpus.memory import RESNETS, Size

_MARK = "SHAPES "
# Starts the program with this package, but none that is installed beside it, within reach.
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from truba_runner.code.keras_stand_in import main
del sys.path[0]
main()
"""
# A busy login node may take as long for what needs a tenth of a second.
PATIENCE_SECONDS = 5.0
_CPU_SECONDS = 2
# Of the networks of a long sweep only the first are counted.
_MOST_NETWORKS = 8
# Enough for a process without a framework.
_MEMORY_BYTES = 1 << 30


class Sizes:
    """Sizes of the networks of one command's runs; those of a sweep that train the same network share one."""

    def __init__(self) -> None:
        """Know none yet."""
        self._known: dict[str, Size | None] = {}

    def of(self, experiment: Experiment, job_file: Path) -> Size | None:
        """Return the size of an experiment's network; None if only its framework could tell."""
        options = experiment.job.options
        if experiment.job.backend == "fastai":
            side, arch = experiment.data.options.get("size"), str(options.get("arch"))
            # fastai's vision_learner gets these two from the job; what another network makes of them is not known.
            if isinstance(side, int) and arch in RESNETS and b"vision_learner(" in job_file.read_bytes():
                return Size(*RESNETS[arch].at(side))
            return None
        if experiment.job.backend != "keras" or experiment.sweep.kind or experiment.job.hyperparameters:
            return None
        key = json.dumps([str(job_file), options], sort_keys=True, default=str)
        if key not in self._known and len(self._known) < _MOST_NETWORKS:
            self._known[key] = _counted(job_file, options)
        return self._known.get(key)


def _counted(file: Path, options: Mapping[str, Any]) -> Size | None:
    argv = [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, str(Path(truba_runner.__file__).parent.parent)]
    try:
        asked = json.dumps({"file": str(file), "folders": [str(file.parent), str(file.parent.parent)],
                            "options": options})  # fmt: skip
        done = subprocess.run(
            argv, input=asked, capture_output=True, text=True, timeout=PATIENCE_SECONDS, cwd="/", env={},
            preexec_fn=_limited,
        )  # fmt: skip
    except (OSError, TypeError, ValueError, subprocess.SubprocessError):
        return None
    return _size(done.stdout.splitlines()) if done.returncode == 0 else None


def _limited() -> None:
    """Let the process write no file, and use little time and memory: a job's module may do anything when executed."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _size(lines: Sequence[str]) -> Size | None:
    for line in reversed(lines):
        if line.startswith(_MARK):
            found = json.loads(line[len(_MARK) :])
            return Size(found["trainable"], found["fixed"], found["kept"])
    return None
