"""The last check of a node, once the framework is imported: a convolution, as cuDNN may fail where CUDA works."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping

from truba_runner.config.schema import Experiment
from truba_runner.nodes import leave, look
from truba_runner.nodes.fault import Fault
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import job_environment
from truba_runner.training import backend


def check(experiment: Experiment, run: RunDir, here: job_environment.Allocation) -> None:
    """Run a small convolution on the GPUs of this node, before the training uses them, and leave the node if it fails.

    In a child process: a broken GPU may block it or crash it, and what it holds of the GPU's memory goes with it.

    Raises:
        truba_runner.errors.Failed: as `leave.leave`.
        truba_runner.slurm.client.SlurmError: as `leave.leave`.
    """
    limits = experiment.cluster.node_check
    if not (here.on_slurm and limits.enabled and look.checks_gpus(experiment)):
        return
    convolve = backend.convolution(experiment.job.backend)
    if convolve is None:
        return
    for module in backend.imports(experiment.job.backend):  # Once, for the training too.
        importlib.import_module(module)

    def attempt() -> Iterator[Mapping[str, str]]:
        try:
            convolve()
        except Exception as error:
            yield {"fault": f"{type(error).__name__}: {error}"}

    with look.in_child(attempt, limits.convolution_seconds) as records:
        message = next((record["fault"] for record in records if "fault" in record), "")
    if message:
        fault = Fault(look.node_name(), "convolution", message.splitlines()[0], time.time())
        leave.leave([run], here, experiment, [fault])
