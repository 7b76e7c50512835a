"""A fastai learner as plain values and tensors, which `torch.load(weights_only=True)` reads, and back."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training.walk.kinds import frameworks_names, is_framework

# A dict of one key with this first letter stands for what the file has no word for.
_MARK = "~"
# Of a callback: the learner, the clock, and which file SaveModelCallback wrote last in this start, if any.
_NOT_STATE = {"learn", "start_epoch", "last_saved_path"}


class _NoState(TypeError):
    """A value that has no place in a state, such as a function."""


def plain(value: Any) -> Any:
    """A copy of numbers, text, None, arrays and tensors, in lists, tuples and dicts of any depth, on the CPU.

    Raises:
        TypeError: there is something else in it.
    """
    import numpy as np
    import torch
    from fastcore.foundation import L

    if value is None or isinstance(value, bool | int | float | str) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor).to("cpu", copy=True)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {f"{_MARK}array": torch.from_numpy(value.copy())}
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | L):
        kind = "list" if type(value) is list else "L" if isinstance(value, L) else "tuple"
        return _plain_list(list(value), kind)
    raise _NoState(type(value).__name__)


def packed(value: Any) -> Any:
    """As `plain`, with sets, deques, bytes, complex numbers, and dicts whose keys are no text; `unplain` unpacks it.

    Raises:
        TypeError: there is something else in it.
    """
    if isinstance(value, (set, frozenset, collections.deque)):
        kind = next(name for name, one in _CONTAINERS.items() if isinstance(value, one))
        limit = value.maxlen if isinstance(value, collections.deque) else None
        items = list(value) if kind == "deque" else sorted(value, key=repr)
        return {f"{_MARK}{kind}": [[packed(item) for item in items], limit]}
    if isinstance(value, bytes):
        return {f"{_MARK}bytes": value.hex()}
    if isinstance(value, complex):
        return {f"{_MARK}complex": [value.real, value.imag]}
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith(_MARK) for key in value):
            return {key: packed(item) for key, item in value.items()}
        return {f"{_MARK}dict": [[packed(key), packed(item)] for key, item in value.items()]}
    if type(value) is list:
        return [packed(item) for item in value]
    if isinstance(value, tuple):
        return {f"{_MARK}tuple": [packed(item) for item in value]}
    return plain(value)


_CONTAINERS: dict[str, Any] = {"set": set, "frozenset": frozenset, "deque": collections.deque}


def _key(key: Any) -> Any:
    if not isinstance(key, str | int):
        raise _NoState(type(key).__name__)
    return key


def _plain_list(items: list[Any], kind: str) -> Any:
    import torch

    single = [isinstance(item, torch.Tensor) and item.ndim == 0 for item in items]
    if items and all(single) and len({item.dtype for item in items}) == 1:
        # A loss a step: each by itself would be a file of its own inside the checkpoint.
        return {
            f"{_MARK}{kind} of tensors": torch.stack([item.detach().as_subclass(torch.Tensor) for item in items]).cpu()
        }
    values = [plain(item) for item in items]
    return values if kind == "list" else {f"{_MARK}{kind}": values}


def unplain(value: Any) -> Any:
    """What `plain` was given."""
    from fastcore.foundation import L

    kinds: dict[str, Any] = {"list": list, "tuple": tuple, "L": L}
    if isinstance(value, list):
        return [unplain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and str(next(iter(value))).startswith(_MARK):
        ((mark, held),) = value.items()
        kind, _, of_tensors = mark.removeprefix(_MARK).partition(" ")
        if kind == "array":
            return held.numpy()
        if kind in _SINGLE:
            return _SINGLE[kind](held)
        # Else a view would hold all of them.
        return kinds[kind]([item.clone() for item in held] if of_tensors else [unplain(item) for item in held])
    return {key: unplain(item) for key, item in value.items()}


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    return {unplain(key): unplain(item) for key, item in pairs}


def _container(kind: Any) -> Any:
    def made(held: list[Any]) -> Any:
        items, limit = [unplain(item) for item in held[0]], held[1]
        return kind(items, limit) if kind is collections.deque else kind(items)

    return made


_SINGLE: dict[str, Any] = {
    **{name: _container(kind) for name, kind in _CONTAINERS.items()},
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*parts),
    "dict": _dict,
}


def weights(learner: Any) -> dict[str, Any]:
    """The network and its optimizer: all that is large. Evaluation leaves it as it is."""
    return {
        **model_weights(learner),
        "optimizer": plain(learner.opt.state_dict()),
        "gradients": [_gradient(parameter) for parameter, *_ in learner.opt.all_params()],
    }


def model_weights(learner: Any) -> dict[str, Any]:
    """The network alone."""
    return {"model": plain(learner.model.state_dict())}


def weights_of_loss(learner: Any) -> dict[str, Any]:
    """The loss' own parameters and buffers as a state dict; fastai's losses hold torch's, under `func`."""
    from torch import nn

    loss = getattr(learner.loss_func, "func", learner.loss_func)
    found: dict[str, Any] = loss.state_dict() if isinstance(loss, nn.Module) else {}
    return found


def _gradient(parameter: Any) -> Any:
    """None where there is none: fastai steps, and decays, whatever has one. True: all zero, as after each step."""
    if parameter.grad is None:
        return None
    return plain(parameter.grad) if bool(parameter.grad.any()) else True


def give_weights(learner: Any, state: Mapping[str, Any]) -> None:
    """Sets what `weights` gave; the learner has to have the same layers and groups of parameters."""
    import torch
    from fastcore.foundation import L

    learner.model.load_state_dict(state["model"])
    device = next(learner.model.parameters()).device
    optimizer = on(device, unplain(state["optimizer"]))
    if "hypers" in optimizer:
        optimizer["hypers"] = L(optimizer["hypers"])
    learner.opt.load_state_dict(optimizer)
    for (parameter, *_rest), gradient in zip(learner.opt.all_params(), state["gradients"], strict=True):
        if gradient is None:
            parameter.grad = None
        else:
            zeros = torch.zeros_like(parameter)
            parameter.grad = zeros if gradient is True else gradient.to(device)


def on(device: Any, value: Any) -> Any:
    """The same with its tensors on a device."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: on(device, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([on(device, item) for item in value])
    return value


def besides(learner: Any) -> dict[str, Any]:
    """Everything else that the rest of a fit depends on."""
    smooth = learner.recorder.smooth_loss
    scaler = getattr(learner, "scaler", None)
    return {
        "learner": {name: plain(getattr(learner, name)) for name in ("train_iter", "pct_train")},
        "smooth_loss": [smooth.count, plain(smooth.val)],
        "scaler": plain(scaler.state_dict()) if scaler is not None else None,
        "callbacks": [[callback.name, memory_of(callback)] for callback in learner.cbs],
        "metrics": [memory_of(metric) for metric in learner.metrics],
    }


def give_besides(learner: Any, state: Mapping[str, Any]) -> None:
    """Sets what `besides` gave."""
    for name, value in state["learner"].items():
        setattr(learner, name, value)
    smooth = learner.recorder.smooth_loss
    smooth.count, smooth.val = state["smooth_loss"]
    if smooth.count:
        learner.smooth_loss = smooth.value
    if state["scaler"] and getattr(learner, "scaler", None) is not None:
        learner.scaler.load_state_dict(state["scaler"])
    left = list(learner.cbs)
    for name, attributes in state["callbacks"]:
        callback = next((item for item in left if item.name == name), None)
        if callback is not None:
            left.remove(callback)
            give_memory(callback, attributes)
    for metric, attributes in zip(learner.metrics, state["metrics"], strict=False):
        give_memory(metric, attributes)


def memory_of(owner: Any) -> dict[str, Any]:
    """What a callback or a metric remembers: what `get_state` gives, else all its attributes that are plain."""
    if speaks(owner):
        try:
            return {"state": plain(owner.get_state())}
        except _NoState as error:
            raise Failed(
                _(
                    "get_state of {kind} returned a {error}, or one inside of something else, which no checkpoint can "
                    "hold. It may hold numbers, text, None, arrays and tensors, in lists, tuples and dicts.",
                    kind=type(owner).__name__,
                    error=error,
                )
            ) from error
    found = {}
    kind = type(owner)
    # What a user's class has of its own is walked.
    names = vars(owner) if is_framework(kind) else vars(owner).keys() & frameworks_names(kind)
    for name in names:
        value = vars(owner)[name]
        if name not in _NOT_STATE:
            try:
                found[name] = plain(value)
            except _NoState:
                continue
    return found


def speaks(owner: Any) -> bool:
    """Whether a callback or a metric says its state itself."""
    return hasattr(type(owner), "get_state") and hasattr(type(owner), "set_state")


def give_memory(owner: Any, attributes: Mapping[str, Any]) -> None:
    """Sets what `memory_of` gave."""
    if speaks(owner):
        owner.set_state(unplain(attributes["state"]))
        return
    # Not setattr: fastai warns of names that the learner has too.
    vars(owner).update({name: unplain(value) for name, value in attributes.items()})


def signature_of_model(model: Any) -> list[list[Any]]:
    """Name, shape and dtype of every weight and buffer."""
    return [[name, list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()]
