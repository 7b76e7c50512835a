"""TensorBoard's event files on the cluster: written on a node's own disk, on another node after a kill."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from slow_run import Run
from truba import Truba

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from event_files_read import seen, told  # noqa: E402

STEPS = [*range(1, 81)]


def opened(process: int) -> list[str]:
    """The files that a process has open; none of one that has ended."""
    found = []
    with suppress(OSError):
        for handle in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(handle))
    return found


def test_a_run_that_goes_on_on_another_node_tells_each_step_once(truba: Truba) -> None:
    # The nodes of the test cluster share /tmp: each gets a folder that stands for its own disk.
    own = f"{truba.project}/disk-of-$SLURMD_NODENAME"
    run = Run(
        truba,
        f"environment.setup=['mkdir -p {own}']",
        f"cluster.partitions.akya-cuda.local_scratch='{own}'",
        "tensorboard.every_steps=1",
        "tensorboard.sync_seconds=3600",
        "tensorboard.graph=true",
    )

    def writes_on(node: str) -> bool:
        """Whether its event file is on that node's disk, where it has no name."""
        links = [link for process in run.workers() for link in opened(process)]
        return any(link.startswith(f"{truba.project}/disk-of-{node}/") and "deleted" in link for link in links)

    run.wait_for_step(1)
    first = run.node()
    run.wait_until(lambda: writes_on(first))
    truba.cluster.run(["scontrol", "update", f"nodename={first}", "state=drain", "reason=test"], user="root")
    try:
        run.kill()
        run.wait_for_step(2)
        second = run.node()
        assert second != first
        run.wait_until(lambda: writes_on(second))
        result = run.finish()
    finally:
        truba.cluster.run(["scontrol", "update", f"nodename={first}", "state=resume"], user="root")
    assert result["restarts"] == 1
    found = seen(run.path)
    for tag in ("batch_loss", "learning_rate", "examples_per_second"):
        assert found[f"train/{tag}"] == STEPS
    assert found["validation/epoch_loss"] == [1, 2, 3, 4]
    # Where it was killed the code is left that it trained, which the user's next job there takes away; no event file.
    left = [path.name for path in (truba.project / f"disk-of-{first}").iterdir()]
    assert len(left) <= 1 and all("-code-" in name for name in left)
    assert not list((truba.project / f"disk-of-{second}").iterdir())
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert len([file for file in files if "tfevents" in file]) == 3 and len(files) <= 16, sorted(files)
    settings = {value.tag: value.simple_value for kind, _, value in told(run.path) if kind == "tensorboard"}
    assert "_hparams_/session_start_info" in settings
    for name, value in result["metrics"].items():
        assert settings[name] == pytest.approx(value, rel=1e-6)
