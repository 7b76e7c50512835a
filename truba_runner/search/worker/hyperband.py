"""Hyperband promotion rules that replace methods of Keras Tuner's oracle, which each function takes.

A round promotes trials only once all of its trials have finished, so the choice is independent of worker speed; until
then, workers start the next bracket. Keras Tuner does so with one worker; with several it promotes from the trials that
happen to have finished.
"""

from __future__ import annotations

from typing import Any

from truba_runner.search.trial_records import REPORTED


def populate_space(oracle: Any, trial_id: str) -> Any:
    """Return the status and values of a new trial: replaces the oracle's method of this name."""
    oracle._remove_completed_brackets()
    for bracket in oracle._brackets:
        number, rounds = bracket["bracket_num"], bracket["rounds"]
        if len(rounds[0]) < oracle._get_size(number, 0):
            return oracle._random_trial(trial_id, bracket)
        for index in range(1, len(rounds)):
            if past := _promoted(oracle, number, rounds, index):
                rounds[index].append({"past_id": past.trial_id, "id": trial_id})
                return {"status": "RUNNING", "values": _promotion(oracle, past, number, index)}
    if oracle._current_bracket == 0 and oracle._current_iteration + 1 == oracle.hyperband_iterations:
        return {"status": "IDLE" if oracle.ongoing_trials else "STOPPED"}
    oracle._increment_bracket_num()
    oracle._start_new_bracket()
    return oracle._random_trial(trial_id, oracle._brackets[-1])


def hopeful(oracle: Any) -> set[str]:
    """Return the ids of trials that can still be promoted; later results only shrink the set."""
    found = set()
    for bracket in oracle._brackets:
        number, rounds = bracket["bracket_num"], bracket["rounds"]
        for index in range(1, len(rounds)):
            places = oracle._get_size(number, index) - len(rounds[index])
            found |= {trial.trial_id for trial in _left(oracle, rounds, index)[:places]}
    return found


def _promoted(oracle: Any, number: int, rounds: list[Any], index: int) -> Any:
    """Return the previous round's best trial not promoted yet; None if none is to be promoted, or not yet."""
    if not _is_over(oracle, number, rounds, index - 1):
        return None
    left = _left(oracle, rounds, index)
    return left[0] if len(left) > oracle._get_size(number, index - 1) - oracle._get_size(number, index) else None


def _left(oracle: Any, rounds: list[Any], index: int) -> list[Any]:
    """Return the previous round's trials with a score that are not promoted, the best first."""
    promoted = {entry["past_id"] for entry in rounds[index]}
    past = [oracle.trials[entry["id"]] for entry in rounds[index - 1] if entry["id"] not in promoted]
    left = [trial for trial in past if trial.status == "COMPLETED"]
    # A stable sort, as in Keras Tuner: of equal trials the earlier comes first.
    return sorted(left, key=lambda trial: trial.score, reverse=oracle.objective.direction == "max")


def _is_over(oracle: Any, number: int, rounds: list[Any], index: int) -> bool:
    """Whether all trials of a round have finished and no trial will join it."""
    if any(oracle.trials[entry["id"]].status not in REPORTED for entry in rounds[index]):
        return False
    if len(rounds[index]) == oracle._get_size(number, index):
        return True
    return index > 0 and _is_over(oracle, number, rounds, index - 1) and not _promoted(oracle, number, rounds, index)


def _promotion(oracle: Any, past: Any, number: int, index: int) -> dict[str, Any]:
    return {
        **past.hyperparameters.values,
        "tuner/trial_id": past.trial_id,
        "tuner/epochs": oracle._get_epochs(number, index),
        "tuner/initial_epoch": oracle._get_epochs(number, index - 1),
        "tuner/bracket": number,
        "tuner/round": index,
    }
