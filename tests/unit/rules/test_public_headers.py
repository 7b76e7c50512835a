"""What people ask sbatch for on TRUBA can be asked for with `resources`, or is refused with the words of the rule."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from public_headers import HEADERS, Header, asked, of_script

from truba_runner.config.schema import Experiment
from truba_runner.errors import Refused
from truba_runner.rules.experiment import plan
from truba_runner.rules.site.here import Here
from truba_runner.slurm import batch_script
from truba_runner.slurm.capacity import LivePartition

Compose = Callable[..., Experiment]
ORFOZ = {"orfoz": LivePartition(192, {"orfoz": 192})}


@pytest.mark.parametrize("header", HEADERS, ids=[header.does for header in HEADERS])
def test_a_header_is_expressed_or_refused(experiment: Compose, header: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ayse")
    made = experiment("resources.account=ayse", *shlex.split(header.overrides))
    here = Here(live=lambda: ORFOZ if made.resources.partition == "orfoz" else None)
    if header.refused:
        with pytest.raises(Refused, match=re.escape(header.refused)):
            plan(made, here)
        return
    request = plan(made, here).request
    script = batch_script.text("true", Path("/logs"), batch_script.parameters("job", request))
    assert asked(of_script(script)) == asked(header.sbatch)
