"""Another site is another file: the page's twenty lines as a stranger follows them, and the site that is shipped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import truba

from truba_runner.config.schema import Experiment
from truba_runner.errors import Refused
from truba_runner.rules.experiment import plan
from truba_runner.slurm import batch_script

PAGE = Path(__file__).parents[3] / "docs" / "clusters.md"
DRY_RUN = ("+experiment=mnist", "cluster=ours", "dry_run=true")


def test_the_pages_twenty_lines_are_a_cluster(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(name: ours\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert found and len(found[1].splitlines()) <= 20
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "ours.yaml").write_text(found[1])
    nobody = truba(*DRY_RUN, cwd=tmp_path, environment=dict(os.environ))
    assert nobody.returncode == 2 and "resources.account=ACCOUNT" in nobody.stderr
    planned = truba(
        *DRY_RUN,
        "resources.account=lab",
        "resources.gpus=2",
        "resources.cores=20",
        cwd=tmp_path,
        environment=dict(os.environ),
    )
    assert planned.returncode == 0, planned.stderr
    for option in ("gpus-per-node=2", "qos=standard", "account=lab", "partition=gpu", "cpus-per-task=20"):
        assert f"#SBATCH --{option}\n" in planned.stdout, planned.stdout
    assert "--gres" not in planned.stdout
    few = truba(
        *DRY_RUN,
        "resources.account=lab",
        "resources.cores=7",
        "resources.qos=long",
        cwd=tmp_path,
        environment=dict(os.environ),
    )
    assert few.returncode == 2
    assert "at least 8 cores per GPU (conf/cluster/ours.yaml" in few.stderr and "gpu takes no such QOS" in few.stderr


def test_the_second_site_has_rules_of_its_own(experiment: Callable[..., Experiment]) -> None:
    with pytest.raises(Refused, match="charges every job to an account"):
        plan(experiment(cluster="gautschi"))
    made = plan(experiment("resources.account=lab", "resources.gpus=4", "resources.time=4d", cluster="gautschi"))
    assert made.warnings == () and (made.request.cores, made.request.qos) == (56, "normal")
    told = batch_script.parameters("job", made.request)
    assert (told["gpus_per_node"], told["account"], "gres" in told) == ("4", "lab", False)
    with pytest.raises(Refused, match="ai takes no such QOS.*Did you mean preemptible"):
        plan(experiment("resources.account=lab", "resources.qos=preemptable", cluster="gautschi"))
