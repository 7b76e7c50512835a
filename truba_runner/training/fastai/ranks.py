"""Data-parallel fastai, one process a GPU, with the result of one process that trains on the whole batch.

fastai with accelerate makes other batches than one process, counts padded examples, and hangs in the learning-rate
finder. torch's DistributedDataParallel sums gradients in another order in its first step than in later ones, so a
resumed run would differ. Here each rank takes its rows of every batch, and the ranks share:

| what | how |
|---|---|
| gradients | their mean, after each backward pass |
| BatchNorm | mean and variance over the whole batch |
| training loss | its mean, so that every rank records the same |
| predictions and labels in validation | gathered, so that every rank computes every metric over all examples |
| interruptions | a signal to one rank counts for all |

BatchNorm layers are those with torch's private base class `_BatchNorm`, and on CPUs their `forward` is written anew
(checked with torch 2.14.1). Where the class is gone, several ranks end with an AttributeError; where it computes
otherwise, ranks on CPUs get other statistics than one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.training.backend import Context
from truba_runner.training.fastai import state
from truba_runner.training.ranks.addresses import worker_addresses
from truba_runner.training.ranks.group import Agreement, Group

TIMEOUT_MINUTES = 30


class RankLost(Exception):
    """Another rank has ended, so this one cannot continue; the other rank's failure is the cause."""


class Ranks(Group):
    """The group of processes that train one network, one a GPU; of a single process, that one alone."""

    def __init__(self, context: Context, device: Any) -> None:
        """Connect to the other ranks if there are any.

        Raises:
            truba_runner.errors.Failed: Slurm's variables do not name the other ranks.
        """
        super().__init__(context.interruption, context.rank, context.tasks)
        self._device = device
        # What all last agreed on; None for a single process.
        self._last = Agreement(stop=False, due=False) if self.together else None
        # Whether a checkpoint is due by the clock; only rank 0's answer counts.
        self.time_is_up: Callable[[], bool] = lambda: False
        # Examples in the batch of all ranks. The shares of a pass' last batch may be more: they are filled up.
        self.batch_size = 0
        if self.together:
            self._meet(worker_addresses(os.environ, self.tasks)[0])

    def _meet(self, address: str) -> None:
        import torch.distributed as dist

        print(
            _("rank {rank} of {count}, meeting at {address}", rank=self.rank, count=self.tasks, address=address),
            flush=True,
        )
        # fastai reads RANK to see who writes files. Without WORLD_SIZE it does nothing else that is distributed.
        os.environ["RANK"] = str(self.rank)
        os.environ.pop("WORLD_SIZE", None)
        dist.init_process_group(
            "nccl" if self._device.type == "cuda" else "gloo",
            init_method=f"tcp://{address}",
            rank=self.rank,
            world_size=self.tasks,
            timeout=timedelta(minutes=TIMEOUT_MINUTES),
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let this rank compute alone while the others wait; interruptions are not agreed on meanwhile."""
        tasks, self.tasks = self.tasks, 1
        try:
            yield
        finally:
            self.tasks = tasks

    # -- agreement ---------------------------------------------------------------------------------------------

    @property
    def interrupted(self) -> bool:
        """Whether any rank had been asked to stop when all last agreed; the same on every rank."""
        return self._last.stop if self._last else self.interruption.requested

    @property
    def due(self) -> bool:
        """Whether a checkpoint was due by rank 0's clock when all last agreed; the same on every rank."""
        return self._last.due if self._last else self.time_is_up()

    def flags(self, due: bool = False) -> list[int]:
        """Return what `agreed` needs the sums of; a checkpoint is due by rank 0's clock too."""
        return super().flags(due or (self.rank == 0 and self.time_is_up()))

    def agreed(self, totals: Sequence[float]) -> Agreement:
        """Return the agreement from the sums of all ranks' `flags`, and remember it."""
        self._last = super().agreed(totals)
        return self._last

    def mean_loss(self, loss: Any) -> Any:
        """Return the mean of `loss` over all ranks; agree on interruptions and saves in the same collective."""
        total, *flags = self._summed([float(loss), *self.flags()])
        self.agreed(flags)
        return loss.new_tensor(total / self.tasks)

    def summed(self, values: list[int]) -> list[int]:
        """Return the sum over all ranks of each of the values."""
        return [int(total) for total in self._summed(values)] if self.together else values

    def _summed(self, values: Sequence[float]) -> list[float]:
        import torch

        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        self._all(lambda dist: dist.all_reduce(tensor))
        return [float(value) for value in tensor.tolist()]

    def part(self) -> None:
        """Leave the group, all ranks at once: a rank that ended earlier would be taken for lost."""
        import torch.distributed as dist

        if self.together:
            self.wait_for_all()
            dist.destroy_process_group()

    def gather(self, value: Any) -> list[Any]:
        """Return each rank's `value`, of any kind, in the order of ranks."""
        found = [value] * self.tasks
        if self.together:
            self._all(lambda dist: dist.all_gather_object(found, value))
        return found

    # -- tensors -----------------------------------------------------------------------------------------------

    def same_weights(self, learner: Any) -> None:
        """Copy rank 0's weights, those of the loss included, to every rank."""
        if self.together:
            for value in (*learner.model.state_dict().values(), *state.weights_of_loss(learner).values()):
                self._all(lambda dist, value=value: dist.broadcast(value, 0))  # type: ignore[misc]

    def mean_gradients(self, learner: Any) -> None:
        """Set each gradient to its mean over all ranks, summed in the same order each time.

        Include the model's parameters and whatever else the optimizer has, such as those of a loss.
        """
        import torch

        parameters = [*learner.model.parameters(), *(parameter for parameter, *_ in learner.opt.all_params())]
        found = {id(item): item.grad for item in parameters if item.requires_grad and item.grad is not None}
        gradients = list(found.values())
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            of_kind = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.reshape(-1) for gradient in of_kind])
            self._all(lambda dist, flat=flat: dist.all_reduce(flat))  # type: ignore[misc]
            parts = (flat / self.tasks).split([gradient.numel() for gradient in of_kind])
            for gradient, part in zip_equal(of_kind, parts):
                gradient.copy_(part.view_as(gradient))

    def put_together(self, value: Any) -> Any:
        """Gather a batch's tensors from all ranks, in row order, without the repeated rows that filled it up."""
        import torch

        if isinstance(value, (list, tuple)):
            return type(value)(self.put_together(item) for item in value)
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            return value
        shares = [torch.empty_like(value) for _ in range(self.tasks)]
        self._all(lambda dist: dist.all_gather(shares, value.contiguous()))
        return torch.cat(shares)[: self.batch_size]

    def _all(self, collective: Callable[[Any], Any]) -> None:
        import torch.distributed as dist

        try:
            collective(dist)
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise
            raise RankLost(
                _(
                    "rank {rank} has lost the connection to another rank: {error}",
                    rank=self.rank,
                    error=str(error).splitlines()[0],
                )
            ) from error

    # -- in fastai's loop --------------------------------------------------------------------------------------

    def callback(self) -> Any:
        """Return the fastai callback that shares gradients, losses and predictions during a fit."""
        from fastai.callback.core import Callback

        ranks = self

        class Together(Callback):  # type: ignore[misc]
            """Callback after MixedPrecision, which turns half-precision predictions into float32."""

            order = 11

            def after_pred(self) -> None:
                if ranks.together and not self.training and ranks.batch_size:
                    self.learn.pred = ranks.put_together(self.pred)
                    self.learn.yb = ranks.put_together(self.yb)

            def after_loss(self) -> None:
                if ranks.together and self.training:
                    self.learn.loss = ranks.mean_loss(self.loss.detach())

            def after_backward(self) -> None:
                if ranks.together:
                    ranks.mean_gradients(self.learn)

        return Together()

    @contextmanager
    def synchronised(self, model: Any) -> Iterator[None]:
        """Make BatchNorm layers take their statistics from the batch of all ranks inside the block."""
        changed = []
        if self.together:
            for layer in model.modules():
                kind = _synchronised_kind(type(layer), self)
                if kind is not None:
                    changed.append((layer, type(layer)))
                    layer.__class__, layer.process_group = kind, None
        try:
            yield
        finally:
            for layer, kind in changed:
                layer.__class__ = kind
                del layer.process_group


def _synchronised_kind(kind: type, ranks: Ranks) -> type | None:
    """Return a subclass of a BatchNorm class, so that fastai still knows it, over all ranks; None for other layers."""
    from torch import nn

    if not issubclass(kind, nn.modules.batchnorm._BatchNorm) or issubclass(kind, nn.SyncBatchNorm):
        return None
    if ranks._device.type == "cuda":
        return type(f"Sync{kind.__name__}", (nn.SyncBatchNorm, kind), {})
    return type(f"Sync{kind.__name__}", (kind,), {"forward": _forward_on_cpu(kind, ranks)})


def _forward_on_cpu(kind: type, ranks: Ranks) -> Callable[[Any, Any], Any]:
    """Return a `forward` that does on CPUs what torch's SyncBatchNorm does on GPUs only."""
    import torch

    class Sum(torch.autograd.Function):  # type: ignore[misc]
        """Sum over all ranks; the gradient is summed too."""

        @staticmethod
        def forward(context: Any, value: Any) -> Any:
            total = value.clone()
            ranks._all(lambda dist: dist.all_reduce(total))
            return total

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            return Sum.forward(context, gradient.contiguous())

    def forward(layer: Any, x: Any) -> Any:
        if not layer.training or not ranks.together:
            return kind.forward(layer, x)  # type: ignore[attr-defined]
        over = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        number = x.numel() // x.shape[1] * ranks.tasks
        mean = Sum.apply(x.sum(over)) / number
        centred = x - mean.view(shape)
        variance = Sum.apply(centred.square().sum(over)) / number
        if layer.track_running_stats:
            layer.num_batches_tracked.add_(1)
            share = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean.detach(), share)
            layer.running_var.lerp_(variance.detach() * (number / (number - 1)), share)
        y = centred * torch.rsqrt(variance + layer.eps).view(shape)
        return y * layer.weight.view(shape) + layer.bias.view(shape) if layer.affine else y

    return forward
