"""For a Python with this folder on its PYTHONPATH, `job.backend=plain` is a backend like the others."""

import os

import truba_runner.training
from truba_runner.config import backends

truba_runner.training.__path__.append(os.path.dirname(__file__))
backends.TRAITS["plain"] = backends.Traits(task_per_gpu=False, multi_node=False)
