"""For a Python with this folder on its PYTHONPATH, `job.backend=plain` is a backend like the others."""

import os

import truba_runner.backends

truba_runner.backends.__path__.append(os.path.dirname(__file__))
truba_runner.backends.TRAITS["plain"] = truba_runner.backends.Traits(task_per_gpu=False, multi_node=False)
