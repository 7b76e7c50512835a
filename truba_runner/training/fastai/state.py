"""Convert a fastai learner to plain values and tensors, which `torch.load(weights_only=True)` reads, and back."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from truba_runner.errors import Failed
from truba_runner.older_python import zip_equal
from truba_runner.training.walk.kinds import frameworks_names, is_framework

# A dict whose only key begins with this character stands for a value of a type that the file cannot hold.
_MARK = "~"
# Attributes of callbacks: the learner, the clock, and the file that SaveModelCallback wrote last in this start.
_NOT_STATE = {"learn", "start_epoch", "last_saved_path"}


class _NoState(TypeError):
    """A value that a state cannot hold, such as a function; its text is the value's type."""


def plain(value: Any) -> Any:
    """Copy numbers, text, None, arrays and tensors, in lists, tuples and dicts of any depth, to the CPU.

    Raises:
        TypeError: `value` contains something else.
    """
    import numpy as np
    import torch
    from fastcore.foundation import L

    if value is None or isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor).to("cpu", copy=True)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {f"{_MARK}array": torch.from_numpy(value.copy())}
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, L)):
        kind = "list" if type(value) is list else "L" if isinstance(value, L) else "tuple"
        return _plain_list(list(value), kind)
    raise _NoState(type(value).__name__)


def packed(value: Any) -> Any:
    """Copy like `plain`, also sets, deques, bytes, complex numbers and dicts with any keys; `unplain` reverses it.

    Raises:
        TypeError: `value` contains something else.
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
    if not isinstance(key, (str, int)):
        raise _NoState(type(key).__name__)
    return key


def _plain_list(items: list[Any], kind: str) -> Any:
    import torch

    single = [isinstance(item, torch.Tensor) and item.ndim == 0 for item in items]
    if items and all(single) and len({item.dtype for item in items}) == 1:
        # Such as one loss per step: each tensor would be a file of its own inside the checkpoint.
        return {
            f"{_MARK}{kind} of tensors": torch.stack([item.detach().as_subclass(torch.Tensor) for item in items]).cpu()
        }
    values = [plain(item) for item in items]
    return values if kind == "list" else {f"{_MARK}{kind}": values}


def unplain(value: Any) -> Any:
    """Reverse `plain` and `packed`."""
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
        # Cloned, because a view would keep the whole stack in memory.
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
    """Return the state of network and optimizer, the large part of a checkpoint; evaluation does not change it."""
    return {
        **model_weights(learner),
        "optimizer": plain(learner.opt.state_dict()),
        "gradients": [_gradient(parameter) for parameter, *_ in learner.opt.all_params()],
    }


def model_weights(learner: Any) -> dict[str, Any]:
    """Return the state of the network alone."""
    return {"model": plain(learner.model.state_dict())}


def weights_of_loss(learner: Any) -> dict[str, Any]:
    """Return the state dict of the loss; fastai's losses have torch's loss under `func`."""
    from torch import nn

    loss = getattr(learner.loss_func, "func", learner.loss_func)
    found: dict[str, Any] = loss.state_dict() if isinstance(loss, nn.Module) else {}
    return found


def _gradient(parameter: Any) -> Any:
    """Return a copy of the gradient; None if there is none (fastai skips the parameter), True if all zero."""
    if parameter.grad is None:
        return None
    return plain(parameter.grad) if bool(parameter.grad.any()) else True


def give_weights(learner: Any, state: Mapping[str, Any]) -> None:
    """Restore what `weights` returned; the learner must have the same layers and parameter groups."""
    import torch
    from fastcore.foundation import L

    learner.model.load_state_dict(state["model"])
    device = next(learner.model.parameters()).device
    optimizer = on(device, unplain(state["optimizer"]))
    if "hypers" in optimizer:
        optimizer["hypers"] = L(optimizer["hypers"])
    learner.opt.load_state_dict(optimizer)
    for (parameter, *_rest), gradient in zip_equal(learner.opt.all_params(), state["gradients"]):
        if gradient is None:
            parameter.grad = None
        else:
            zeros = torch.zeros_like(parameter)
            parameter.grad = zeros if gradient is True else gradient.to(device)


def on(device: Any, value: Any) -> Any:
    """Return `value` with its tensors on a device."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: on(device, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([on(device, item) for item in value])
    return value


def besides(learner: Any) -> dict[str, Any]:
    """Return the learner's other state that the remaining fit depends on."""
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
    """Restore what `besides` returned."""
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
    for metric, attributes in zip(learner.metrics, state["metrics"]):
        give_memory(metric, attributes)


def memory_of(owner: Any) -> dict[str, Any]:
    """Return the state of a callback or metric: the result of its `get_state`, else all its plain attributes."""
    if speaks(owner):
        try:
            return {"state": plain(owner.get_state())}
        except _NoState as error:
            raise Failed(
                "get_state of {kind} returned a {error}, or something that contains one, which a checkpoint cannot "
                "store. It may return numbers, text, None, arrays and tensors, in lists, tuples and dicts.",
                kind=type(owner).__name__,
                error=error,
            ) from error
    found = {}
    kind = type(owner)
    # Attributes of a user's own class are saved by `walk.Walked`.
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
    """Whether a callback or metric has `get_state` and `set_state`."""
    return hasattr(type(owner), "get_state") and hasattr(type(owner), "set_state")


def give_memory(owner: Any, attributes: Mapping[str, Any]) -> None:
    """Restore what `memory_of` returned."""
    if speaks(owner):
        owner.set_state(unplain(attributes["state"]))
        return
    # Not setattr: fastai warns about names that the learner has too.
    vars(owner).update({name: unplain(value) for name, value in attributes.items()})


def signature_of_model(model: Any) -> list[list[Any]]:
    """Return name, shape and dtype of every weight and buffer."""
    return [[name, list(value.shape), str(value.dtype)] for name, value in model.state_dict().items()]
