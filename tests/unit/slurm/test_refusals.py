"""What sbatch prints when it refuses a job, and what the user is told: the filter's rule, and not Slurm's last line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from truba_runner.config.schema import Experiment
from truba_runner.errors import Refused
from truba_runner.rules.experiment import plan
from truba_runner.slurm.commands import explained, words_of_refusal

# As Slurm 22.05.8 prints it behind the filter's line.
QOS = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
    "and/or time limits)"
)
# The filter's words as users of TRUBA report them, or as its documentation has them, and what they become.
SAID = [
    ("Lutfen islerinizi /arf/scratch/ dizini altinda calistiriniz!", "are under /arf/scratch.", "TRUBA_SCRATCH"),
    ("Orfoz kuyruguna gonderilen islerde node basina 56/112 cekirdek talep ediniz.", "56/112 cores", "resources.cores"),
    ("Hamsi kuyruguna gonderilen isleride node basina 56 cekirdek talep ediniz", "on Hamsi", "resources.cores"),
    (
        "barbun-cuda kuyruguna gonderilen islerin cekirdek sayisi 20 ve katlari olmalidir",
        "jobs on barbun-cuda must ask for 20 cores or a multiple",
        "resources.cores",
    ),
    ("barbun-cuda kuyruguna sadece GPU talebi olan isler gonderilebilir.", "no job without a GPU", "resources.gpus=1"),
    ("Too few CPUs requested for the number of GPUs.", "fewer cores than its GPUs require", "resources.cores"),
]


@pytest.mark.parametrize(("line", "means", "do"), SAID)
def test_the_filters_line_is_explained_in_both_languages(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, line: str, means: str, do: str
) -> None:
    refusals = experiment().cluster.refusals
    words, by_filter = words_of_refusal(f"sbatch: error: {line}\n{QOS}")
    assert (words, by_filter) == (line, True)
    told = explained(words, refusals)
    assert told and means in told[0] and do in told[1]
    monkeypatch.setenv("TRUBA_LANG", "tr")
    turkish = explained(words, refusals)
    assert turkish and turkish[0] != told[0] and do in turkish[1]


def test_an_unknown_line_of_the_filter_is_shown_and_slurms_own_only_without_one(
    experiment: Callable[..., Experiment],
) -> None:
    unknown = "akya-cuda kuyruguna gonderilen islerde GPU basina 10 cekirdek talep ediniz."
    assert words_of_refusal(f"sbatch: error: {unknown}\n{QOS}") == (unknown, True)
    assert explained(unknown, experiment().cluster.refusals) is None
    account = "Batch job submission failed: Invalid account or account/partition combination specified"
    assert words_of_refusal(f"sbatch: error: {account}") == (account, False)
    tested = "allocation failure: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    assert words_of_refusal(f"sbatch: error: {unknown}\n{tested}") == (unknown, True)


@pytest.mark.parametrize(
    ("row", "told"), [({"matches": "("}, "not a valid regular"), ({"means": "{cores} cores"}, "no group of this name")]
)
def test_a_row_that_cannot_be_used_is_refused(
    experiment: Callable[..., Experiment], row: dict[str, str], told: str
) -> None:
    made = experiment()
    broken = replace(made.cluster.refusals[0], **row)
    with pytest.raises(Refused, match=f"cluster.refusals: filter-scratch: .*{told}"):
        plan(replace(made, cluster=replace(made.cluster, refusals=[broken])))
