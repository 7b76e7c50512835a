"""Whom Hyperband promotes, and when: in place of what Keras Tuner's own oracle does, which each function is given.

A round is promoted from once all of it is told, so that whom it promotes hangs on no worker's speed. With one worker
that is what Keras Tuner does by itself. With several it promotes from those that happen to be done; here a worker goes
on to the next bracket meanwhile.
"""

from __future__ import annotations

from typing import Any

from truba_runner.search.trial_records import TOLD


def populate_space(oracle: Any, trial_id: str) -> Any:
    """The values of a new trial, and whether there is one: the method of this name that a Hyperband oracle has."""
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
    """Trials that may still be promoted; whoever is told later can only push some of them out."""
    found = set()
    for bracket in oracle._brackets:
        number, rounds = bracket["bracket_num"], bracket["rounds"]
        for index in range(1, len(rounds)):
            places = oracle._get_size(number, index) - len(rounds[index])
            found |= {trial.trial_id for trial in _left(oracle, rounds, index)[:places]}
    return found


def _promoted(oracle: Any, number: int, rounds: list[Any], index: int) -> Any:
    """The best trial of the round before that is not promoted yet; None where none is to be, or not yet."""
    if not _is_over(oracle, number, rounds, index - 1):
        return None
    left = _left(oracle, rounds, index)
    return left[0] if len(left) > oracle._get_size(number, index - 1) - oracle._get_size(number, index) else None


def _left(oracle: Any, rounds: list[Any], index: int) -> list[Any]:
    """Those of the round before that came to a score and are not promoted, the best first."""
    promoted = {entry["past_id"] for entry in rounds[index]}
    past = [oracle.trials[entry["id"]] for entry in rounds[index - 1] if entry["id"] not in promoted]
    left = [trial for trial in past if trial.status == "COMPLETED"]
    # Stable, as Keras Tuner's own: of two that are equal the earlier.
    return sorted(left, key=lambda trial: trial.score, reverse=oracle.objective.direction == "max")


def _is_over(oracle: Any, number: int, rounds: list[Any], index: int) -> bool:
    """Whether each trial of a round is told, and none will join it."""
    if any(oracle.trials[entry["id"]].status not in TOLD for entry in rounds[index]):
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
