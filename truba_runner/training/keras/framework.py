"""Select TensorFlow as Keras' own backend, before Keras is imported."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from truba_runner.errors import Failed
from truba_runner.log import info
from truba_runner.training.backend import Context

_VARIABLE, _OURS = "KERAS_BACKEND", "tensorflow"


def choose(environment: MutableMapping[str, str]) -> str:
    """Set the variable that Keras reads on import; return the setting that asked for another backend, else ''."""
    wanted = environment.get(_VARIABLE, "")
    environment[_VARIABLE] = _OURS
    if wanted:
        return "" if wanted == _OURS else f"{_VARIABLE}={wanted}"
    home = environment.get("KERAS_HOME") or os.path.join(environment.get("HOME", ""), ".keras")
    file = Path(home) / "keras.json"
    try:
        wanted = json.loads(file.read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):  # Keras ignores such a file, too.
        return ""
    return "" if wanted == _OURS else f"{file}: backend {wanted}"


def check(context: Context, other: str) -> None:
    """Check that Keras uses TensorFlow; print that `other`, from `choose`, is ignored. Call this after loading the job.

    Raises:
        truba_runner.errors.Failed: Keras has been imported with another backend.
    """
    if "keras" not in sys.modules:
        other = choose(os.environ) or other
    if other:
        info("{other} is not used: job.backend=keras trains with TensorFlow", other=other)
    import keras

    if (found := keras.backend.backend()) != _OURS:
        raise Failed(
            "Keras was imported with the backend {found}, but job.backend=keras trains with TensorFlow only. "
            "KERAS_BACKEND={found} was set before Keras was imported: remove that from {file}, and from the "
            "modules it imports.",
            found=found,
            file=context.job.__file__,
        )
