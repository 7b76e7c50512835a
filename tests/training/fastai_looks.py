"""Inspect the files of fastai runs with torch and fastai, in a child process of `fastai_resume_runs`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any


def others(folder: Path) -> list[list[str]]:
    """Return the key paths of the newest checkpoint's state at which rank 1 differs from rank 0."""
    from truba_runner.runs.checkpoints import CheckpointStore
    from truba_runner.training.fastai.resume import read_state

    found = CheckpointStore(folder / "checkpoints").newest(read_state)
    assert found is not None
    return [keys for keys, _value in found[1]["others"][0]["other"]]


def checkpoint(folder: Path) -> dict[str, Any]:
    """Return the newest checkpoint's position and comparable state: without times, tensors as hashes."""
    import hashlib

    import torch

    from truba_runner.runs.checkpoints import CheckpointStore
    from truba_runner.training.fastai.resume import read_state

    found = CheckpointStore(folder / "checkpoints").newest(read_state)
    if found is None:
        return {}
    position, state = found
    for clock in ("seconds", "epoch_seconds"):
        state["reporter"].pop(clock)
    for row in state["reporter"]["rows"]:
        row.pop("seconds")
    state.pop("event_files")
    for name, attributes in state["callbacks"]:
        if name == "recorder":
            attributes.pop("log", None)  # Contains epoch times.

    def told(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
            return f"{value.dtype} {list(value.shape)} {hashlib.sha256(data).hexdigest()[:16]}"
        if isinstance(value, dict):
            return {str(key): told(item) for key, item in value.items()}
        return [told(item) for item in value] if isinstance(value, list) else value

    return {"position": [position.epoch, position.step], **told(state)}


def models(folder: Path, photograph: str) -> dict[str, Any]:
    """Describe the two exported models, and return the prediction for a photograph."""
    import torch
    from fastai.learner import load_learner

    safe = torch.load(folder / "model.pt", weights_only=True)
    # export.pkl must load without the job's module.
    sys.modules.pop("truba_job_small", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = load_learner(folder / "export.pkl")
    same = all(torch.equal(value, safe["model"][name]) for name, value in learner.model.state_dict().items())
    with learner.no_bar():
        name, _, chances = learner.predict(folder.parent / "photographs" / photograph)
    modules = sorted({type(callback).__module__.split(".")[0] for callback in learner.cbs})
    return {
        "keys": sorted(safe), "vocab": safe["vocab"], "arch": safe["arch"], "same": same, "predicted": name,
        "chances": chances.tolist(), "callbacks_from": modules, "patched": "_do_fit" in vars(learner),
    }  # fmt: skip


def stock(folder: Path, recipe: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train the same job with fastai's own calls only, without this package's loop; `recipe` is Python source."""
    import torch
    from fastai.callback.schedule import minimum, slide, steep, valley

    from truba_runner.code import job_module
    from truba_runner.training.fastai.learner.batches import key, seed_all
    from truba_runner.training.fastai.train import weights_sha256

    job = job_module.load(folder / "small.py")
    items = job.load_items("made", folder.parent)
    seed_all(key(0, "loaders"))
    dls = job.data_block(items).dataloaders(items, bs=10, num_workers=0, device=torch.device("cpu"))
    seed_all(key(0, "learner"))
    learn = job.build_learner(dls, **options)
    learn.remove_cb(learn.progress)
    funcs = (minimum, steep, valley, slide)
    exec(recipe, {"learn": learn, "funcs": funcs})
    return {"sha256": weights_sha256(learn.model), "values": [list(row) for row in learn.recorder.values]}


def weights(folder: Path, other: str) -> float:
    """Return the largest difference between the weights of two runs."""
    import torch

    one, two = (torch.load(Path(path) / "model.pt", weights_only=True)["model"] for path in (folder, other))
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


def suggestions(folder: Path, curves: list[tuple[list[float], list[float], int]]) -> list[dict[str, float | None]]:
    """Return what fastai's four functions suggest for each curve, called as `lr_find` does; None if one fails."""
    import torch
    from fastai.callback.schedule import minimum, slide, steep, valley

    def of(rates: list[float], losses: list[float], steps: int) -> dict[str, float | None]:
        x, y = (torch.tensor(values[steps // 10 : -5]) for values in (rates, losses))
        broken = torch.nonzero(torch.isnan(y)).flatten().tolist()
        x, y = (values[: broken[0]] if broken else values for values in (x, y))
        found: dict[str, float | None] = {}
        for function in (minimum, steep, valley, slide):
            try:
                found[function.__name__] = float(function(x, y, steps)[0])
            except (IndexError, RuntimeError, ValueError):
                found[function.__name__] = None
        return found

    return [of(*curve) for curve in curves]
