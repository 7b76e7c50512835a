"""What Slurm's commands print, taken apart: pure, for whoever asks."""

from __future__ import annotations

import re


def gpus_in(gres: str) -> int:
    """The GPUs in Slurm's `gpu:v100:4(S:0-1),…`."""
    return sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))


def each_task(job_id: str) -> list[str]:
    """Of an array, those tasks that never began are one row of sacct's: `12_[3,7-9%4]`, of which 4 at once."""
    array, bracket, tasks = job_id.partition("_[")
    if not bracket:
        return [job_id]
    ranges = re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", tasks.partition("%")[0])
    numbers = (range(int(first), int(last or first) + 1, int(step or 1)) for first, last, step in ranges)
    return [f"{array}_{number}" for some in numbers for number in some]
