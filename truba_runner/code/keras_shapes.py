"""Replacements for Keras' layers that compute output shapes and count weights without Keras.

Whatever they do not know raises `Unknown`: a count must never be more than the network needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

# The lengths of a tensor's axes without the batch; None: any length.
Shape = Any


class Unknown(Exception):
    """The network has something whose shape is not known here."""


class Anything:
    """Replaces what does not affect shapes: initializers, optimizers, other packages. It refuses tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept any arguments, also those of a class statement that has an instance as its base."""

    def __getattr__(self, name: str) -> Any:
        """Return another Anything; refuse Python's own names, and names that change the size of numbers."""
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("set_dtype_policy", "set_floatx", "set_global_policy", "set_policy"):
            raise Unknown
        return Anything()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return another Anything; a result computed from tensors has an unknown shape."""
        if any(isinstance(one, (Tensor, list, tuple)) and tensors(one) for one in (*args, *kwargs.values())):
            raise Unknown
        return Anything()


class Tensor:
    """An output: its shape, its layer, and the layer's inputs. `memory`: the tensor whose memory it shares."""

    def __init__(self, shape: Shape, layer: Any = None, inputs: tuple[Any, ...] = ()) -> None:
        """Keep a shape without the batch, and where it comes from."""
        self.shape, self.layer, self.inputs, self.memory = tuple(shape), layer, inputs, self


def tensors(value: Any) -> list[Any]:
    """Return the tensors in a value: itself, or those of a list."""
    return [one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, Tensor)]


def elements(shape: Shape) -> int:
    """Return the least number of elements of a shape; an unknown length counts as 1."""
    return math.prod(1 if length is None else length for length in shape)


def known(length: int | None) -> int:
    """Return a length; raise Unknown if it is not known."""
    if not isinstance(length, int):
        raise Unknown
    return length


class Layer:
    """A layer; `rule` returns the shape of its output, and its numbers of trainable and of other weights."""

    # Whether the gradient of its weights needs its input.
    keeps = False
    # Whether its output may share the memory of its input.
    view = False

    def __init__(self, *args: Any, **options: Any) -> None:
        """Keep the options by name; positional ones are named in the order of `names`."""
        self.options = {**{self.names[index]: one for index, one in enumerate(args)}, **options}
        self.weights: Any = None
        # A frozen layer, or one with numbers of another size than the training's.
        if not options.get("trainable", True) or options.get("dtype") not in (None, "float32"):
            raise Unknown

    names: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse frozen layers: without gradients, fewer activations are kept."""
        if name == "trainable" and not value:
            raise Unknown
        object.__setattr__(self, name, value)

    def option(self, name: str, default: Any) -> Any:
        """Return an option, or its default."""
        return self.options.get(name, default)

    def rule(self, shapes: list[Shape]) -> tuple[Shape, int, int]:
        """Return the output's shape, trainable weights and other weights; unknown for a job's own class."""
        raise Unknown

    def __call__(self, inputs: Any, *args: Any, **options: Any) -> Tensor:
        """Return the output for a tensor, or for a list of tensors."""
        tensors_in = tensors(inputs)
        if not tensors_in or args or tensors(list(options.values())):
            raise Unknown
        shape, *self.weights = self.rule([tensor.shape for tensor in tensors_in])
        output = Tensor(shape, self, tuple(tensors_in))
        if self.view:
            output.memory = tensors_in[0].memory
        return output


def layer(names: str, rule: Callable[..., Any], keeps: bool = False, view: bool = False) -> Any:
    """Make a layer's class from its rule; `names`: its positional arguments."""
    return type("Known", (Layer,), {"names": tuple(names.split(",")), "rule": rule, "keeps": keeps, "view": view})


def dense(self: Any, shapes: Any) -> Any:
    """Return the rule of a dense layer."""
    units, width = known(self.options["units"]), known(shapes[0][-1])
    return (*shapes[0][:-1], units), (width + bool(self.option("use_bias", True))) * units, 0


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """Return an option's value for each axis; it may be given as one number for all axes."""
    return tuple(value) if isinstance(value, (list, tuple)) else (known(value),) * axes


def window(self: Any, shape: Any, axes: int, size: Any, strides: Any, padding: str) -> Any:
    """Return the lengths of the axes after a convolution's or pooling's window has moved over them."""
    if self.option("data_format", None) not in (None, "channels_last") or len(shape) != axes + 1:
        raise Unknown
    widths, steps = per_axis(size, axes), per_axis(strides, axes)
    spread = per_axis(self.option("dilation_rate", 1), axes)
    lengths: list[int | None] = []
    for axis in range(axes):
        length, width, step, wide = shape[axis], widths[axis], steps[axis], spread[axis]
        if length is None:
            lengths.append(None)
        elif padding in ("same", "causal"):
            lengths.append(-(-length // step))
        else:
            lengths.append((length - (width - 1) * wide - 1) // step + 1)
    if any(length is not None and length < 1 for length in lengths):
        raise Unknown
    return tuple(lengths)


def convolution(axes: int) -> Any:
    """Return the class of a convolution."""

    def rule(self: Any, shapes: Any) -> Any:
        filters, width = known(self.options["filters"]), known(shapes[0][-1])
        size, padding = self.options["kernel_size"], self.option("padding", "valid")
        lengths = window(self, shapes[0], axes, size, self.option("strides", 1), padding)
        area, groups = math.prod(per_axis(size, axes)), known(self.option("groups", 1))
        return (*lengths, filters), filters * (area * width // groups + bool(self.option("use_bias", True))), 0

    return layer("filters,kernel_size,strides,padding", rule, keeps=True)


def pooling(axes: int) -> Any:
    """Return the class of a pooling layer."""

    def rule(self: Any, shapes: Any) -> Any:
        size, padding = self.option("pool_size", 2), self.option("padding", "valid")
        return (
            (*window(self, shapes[0], axes, size, self.option("strides", None) or size, padding), shapes[0][-1]),
            0,
            0,
        )

    return layer("pool_size,strides,padding", rule)


def over_all(self: Any, shapes: Any) -> Any:
    """Return the rule of a global pooling layer."""
    if self.options.get("keepdims") or self.option("data_format", None) == "channels_first":
        raise Unknown
    return (shapes[0][-1],), 0, 0


def normalized(moving: int) -> Any:
    """Return the class of a normalization layer; `moving`: its values for each channel that are not learned."""

    def rule(self: Any, shapes: Any) -> Any:
        if self.option("axis", -1) != -1:
            raise Unknown
        learned, width = bool(self.option("center", True)) + bool(self.option("scale", True)), known(shapes[0][-1])
        return shapes[0], learned * width, moving * width

    return layer("axis", rule)


def embedded(self: Any, shapes: Any) -> Any:
    """Return the rule of Embedding."""
    return (*shapes[0], self.options["output_dim"]), self.options["input_dim"] * self.options["output_dim"], 0


def recurrent(gates: int, biases: int) -> Any:
    """Return the class of a recurrent layer."""

    def rule(self: Any, shapes: Any) -> Any:
        if self.options.get("return_state"):
            raise Unknown
        units, width = known(self.options["units"]), known(shapes[0][-1])
        weights = gates * units * (width + units + biases * bool(self.option("use_bias", True)))
        return ((*shapes[0][:-1], units) if self.options.get("return_sequences") else (units,)), weights, 0

    return layer("units", rule)


def joined(self: Any, shapes: Any) -> Any:
    """Return the rule of Concatenate."""
    if self.option("axis", -1) != -1:
        raise Unknown
    return (*shapes[0][:-1], sum(known(shape[-1]) for shape in shapes)), 0, 0


UNCHANGED = (
    "Add Average ELU LeakyReLU Maximum Minimum Multiply Normalization RandomContrast RandomFlip RandomRotation "
    "RandomTranslation RandomZoom ReLU Rescaling Softmax Subtract"
)
# Layers that do nothing with some options, so that their output may be their input.
MAYBE_NOTHING = (
    "Activation Dropout GaussianDropout GaussianNoise Identity Masking SpatialDropout1D SpatialDropout2D "
    "SpatialDropout3D"
)
LAYERS: dict[str, Any] = {
    "Layer": Layer,
    "Dense": layer("units,activation,use_bias", dense, keeps=True),
    "Flatten": layer("", lambda self, shapes: ((math.prod(map(known, shapes[0])),), 0, 0), view=True),
    "Embedding": layer("input_dim,output_dim", embedded),
    "BatchNormalization": normalized(2),
    "LayerNormalization": normalized(0),
    "LSTM": recurrent(4, 1),
    "GRU": recurrent(3, 1),
    "SimpleRNN": recurrent(1, 1),
    "Concatenate": layer("axis", joined),
    **{f"Conv{axes}D": convolution(axes) for axes in (1, 2, 3)},
    **{f"{kind}Pooling{axes}D": pooling(axes) for kind in ("Max", "Average") for axes in (1, 2, 3)},
    **{f"Global{kind}Pooling{axes}D": layer("", over_all) for kind in ("Max", "Average") for axes in (1, 2, 3)},
    **{name: layer("value", lambda self, shapes: (shapes[0], 0, 0)) for name in UNCHANGED.split()},
    **{name: layer("value", lambda self, shapes: (shapes[0], 0, 0), view=True) for name in MAYBE_NOTHING.split()},
}
