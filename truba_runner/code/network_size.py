"""Count the weights of a job's network at submission, within seconds and without a framework, if that is possible."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import truba_runner
from truba_runner.config.schema import Experiment
from truba_runner.rules.gpus.memory import RESNETS, Size

_MARK = "SHAPES "
# Imports the program, then removes its folder from the path, since other packages may be installed there.
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from truba_runner.code.keras_stand_in import main
del sys.path[0]
main()
"""
# Time limit for a job's module, waiting included; most need a tenth of a second.
PATIENCE_SECONDS = 2.0
# A module that took longer than this without building a network is not executed again.
_SLOW_SECONDS = 0.9
# A long sweep may have more networks; only the first ones are counted.
_MOST_NETWORKS = 8
# The only way to resize images to data.options.size that is recognized in a fastai job.
_SIZED = re.compile(rb"aug_transforms\([^)]*\bsize=size\b")


class Sizes:
    """Sizes of the networks of one command's runs; those of a sweep that train the same network share one."""

    def __init__(self) -> None:
        """Start with an empty cache."""
        self._known: dict[str, Size | None] = {}
        self._slow: set[Path] = set()

    def of(self, experiment: Experiment, job_file: Path) -> Size | None:
        """Return the size of an experiment's network; None if it cannot be known without the framework."""
        if not job_file.is_file() or experiment.sweep.kind or experiment.job.hyperparameters:
            return None
        if experiment.job.backend == "fastai":
            return _of_fastai(experiment, job_file.read_bytes())
        if experiment.job.backend != "keras" or job_file in self._slow:
            return None
        options = experiment.job.options
        key = repr((str(job_file), options))
        if key not in self._known and len(self._known) < _MOST_NETWORKS:
            began = time.monotonic()
            self._known[key] = _counted(job_file, options)
            if self._known[key] is None and time.monotonic() - began > _SLOW_SECONDS:
                self._slow.add(job_file)
        return self._known.get(key)


def _of_fastai(experiment: Experiment, text: bytes) -> Size | None:
    """Return the size of a torchvision ResNet for images of `data.options.size`, if the job's code clearly uses one."""
    options, side = experiment.job.options, experiment.data.options.get("size")
    arch, first = str(options.get("arch")), next(iter(experiment.train.recipe), None)
    # The job uses only a part of the network, or images of another size.
    other = "cut" in options or b"cut=" in text or isinstance(first, Mapping) and "resize" in first
    if isinstance(side, int) and arch in RESNETS and b"vision_learner(" in text and _SIZED.search(text) and not other:
        return Size(*RESNETS[arch].at(side))
    return None


def _counted(file: Path, options: Mapping[str, Any]) -> Size | None:
    """Build the network with keras_stand_in.py in a process of its own, without this process's environment."""
    argv = [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, str(Path(truba_runner.__file__).parent.parent)]
    try:
        order = json.dumps({"file": str(file), "folders": [str(file.parent), str(file.parent.parent)],
                            "options": options})  # fmt: skip
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/", env={},
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                printed = process.communicate(order, timeout=PATIENCE_SECONDS)[0]
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return _size(printed.splitlines()) if process.returncode == 0 else None
    except (OSError, TypeError, ValueError, subprocess.SubprocessError):
        return None


def _size(lines: Sequence[str]) -> Size | None:
    for line in reversed(lines):
        if line.startswith(_MARK):
            found = json.loads(line[len(_MARK) :])
            return Size(found["trainable"], found["fixed"], found["kept"])
    return None
