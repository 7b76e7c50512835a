"""fastai on several GPUs, a process each, which together train as one process with the whole batch would.

fastai's and accelerate's own way gives other batches than one process, counts padded examples, and hangs in the
learning-rate finder; torch's DistributedDataParallel adds gradients in another order after its first step than in it,
so that a resumed run would differ. Here each rank takes its rows of every batch, and these go over all ranks:

| what | how |
|---|---|
| gradients | their mean, after each backward pass |
| BatchNorm | mean and variance over the whole batch |
| the training loss | its mean, so that every rank records the same |
| predictions and labels in validation | put together, so that every rank computes every metric over all examples |
| interruptions | any rank's are every rank's |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from truba_runner.language import _
from truba_runner.training.backend import Context
from truba_runner.training.fastai import state
from truba_runner.training.interrupt import Interruption
from truba_runner.training.ranks.addresses import worker_addresses

TIMEOUT_MINUTES = 30


class RankLost(Exception):
    """Another rank has ended, so this one cannot go on; what happened to that one is the reason."""


class Ranks:
    """All processes of a job that trains one network, seen from one of them. Every rank calls the same, in order."""

    def __init__(self, context: Context, device: Any) -> None:
        """Meets the other ranks where there are any.

        Raises:
            truba_runner.errors.Failed: Slurm did not say who the other ranks are.
        """
        self.rank, self.count, self._device = context.rank, context.tasks, device
        self._tasks = context.tasks
        self._interruption = context.interruption
        self._agreed = self._due = False
        # Whether a checkpoint is due by the clock, as rank 0 sees it.
        self.time_is_up: Callable[[], bool] = lambda: False
        # How many examples the batch of all ranks has; the last one of a pass may have fewer than its shares together.
        self.batch_size = 0
        if self.count > 1:
            self._meet(worker_addresses(os.environ, self.count)[0])

    def _meet(self, address: str) -> None:
        import torch.distributed as dist

        print(
            _("rank {rank} of {count}, meeting at {address}", rank=self.rank, count=self.count, address=address),
            flush=True,
        )
        # fastai asks RANK who writes files. Without WORLD_SIZE it leaves everything else that is distributed to us.
        os.environ["RANK"] = str(self.rank)
        os.environ.pop("WORLD_SIZE", None)
        dist.init_process_group(
            "nccl" if self._device.type == "cuda" else "gloo",
            init_method=f"tcp://{address}",
            rank=self.rank,
            world_size=self.count,
            timeout=timedelta(minutes=TIMEOUT_MINUTES),
        )

    @property
    def together(self) -> bool:
        """Whether there is anybody else."""
        return self.count > 1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """In here this rank computes by itself while the others wait for it, so it is not interrupted."""
        count, self.count = self.count, 1
        try:
            yield
        finally:
            self.count = count

    # -- agreement ---------------------------------------------------------------------------------------------

    @property
    def interrupted(self) -> bool:
        """Whether any rank was asked to stop by the last time that all agreed: the same answer on every rank."""
        return self._agreed if self._tasks > 1 else self._interruption.requested

    @property
    def due(self) -> bool:
        """Whether a checkpoint is due by rank 0's clock: the same answer on every rank."""
        return self._due if self._tasks > 1 else self.time_is_up()

    def agree(self) -> bool:
        """Asks all ranks whether one was asked to stop; signals that only others have received count as received."""
        if self.together:
            self._take(self._summed(self._flags()))
        return self.interrupted

    def _flags(self) -> list[float]:
        due = self.rank == 0 and self.time_is_up()
        return [float(due), *(float(number in self._interruption.received) for number in Interruption.signals())]

    def _take(self, totals: list[float]) -> None:
        due, *signals = totals
        for number, total in zip(Interruption.signals(), signals, strict=True):
            if total and number not in self._interruption.received:
                self._interruption.received.append(number)
        self._agreed, self._due = any(signals), bool(due)

    def mean_loss(self, loss: Any) -> Any:
        """The mean of a number over all ranks; they agree on interruptions and saves in the same breath."""
        total, *flags = self._summed([float(loss), *self._flags()])
        self._take(flags)
        return loss.new_tensor(total / self.count)

    def _summed(self, values: list[float]) -> list[float]:
        import torch

        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        self._all(lambda dist: dist.all_reduce(tensor))
        return [float(value) for value in tensor.tolist()]

    def wait_for_all(self) -> None:
        """Returns once every rank is here."""
        if self.together:
            self._summed([0.0])

    def part(self) -> None:
        """The end, for all at once: whoever ended earlier would be taken for lost."""
        import torch.distributed as dist

        if self.together:
            self.wait_for_all()
            dist.destroy_process_group()

    def from_rank_0(self, values: list[float]) -> list[float]:
        """The values that rank 0 has; the others give as many."""
        if not self.together:
            return values
        return self._summed(values if self.rank == 0 else [0.0] * len(values))

    def all_objects(self, value: Any) -> list[Any]:
        """What every rank gives, in their order."""
        found: list[Any] = [None] * self.count
        self._all(lambda dist: dist.all_gather_object(found, value))
        return found

    # -- tensors -----------------------------------------------------------------------------------------------

    def same_weights(self, learner: Any) -> None:
        """Gives every rank rank 0's weights, those of the loss too."""
        if self.together:
            for value in (*learner.model.state_dict().values(), *state.weights_of_loss(learner).values()):
                self._all(lambda dist, value=value: dist.broadcast(value, 0))  # type: ignore[misc]

    def check_same(self, digest: str) -> None:
        """Makes sure that every rank has trained the same weights, bit for bit; `digest` is of this rank's.

        Raises:
            RuntimeError: they differ.
        """
        own = [float(byte) for byte in bytes.fromhex(digest)]
        if self.together and self._summed([*own, *(byte * byte for byte in own)]) != [
            *(byte * self.count for byte in own),
            *(byte * byte * self.count for byte in own),
        ]:
            raise RuntimeError(_("the ranks have trained different weights: their results cannot be trusted"))

    def mean_gradients(self, learner: Any) -> None:
        """Sets every parameter's gradient to its mean over all ranks, added up in the same order each time.

        Those of the model, and what else the optimizer was given, such as a loss' own.
        """
        import torch

        parameters = [*learner.model.parameters(), *(parameter for parameter, *_ in learner.opt.all_params())]
        found = {id(item): item.grad for item in parameters if item.requires_grad and item.grad is not None}
        gradients = list(found.values())
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            of_kind = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.reshape(-1) for gradient in of_kind])
            self._all(lambda dist, flat=flat: dist.all_reduce(flat))  # type: ignore[misc]
            parts = (flat / self.count).split([gradient.numel() for gradient in of_kind])
            for gradient, part in zip(of_kind, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def put_together(self, value: Any) -> Any:
        """A batch's tensors of all ranks in the order of its rows, those that were filled in left out."""
        import torch

        if isinstance(value, list | tuple):
            return type(value)(self.put_together(item) for item in value)
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            return value
        shares = [torch.empty_like(value) for _ in range(self.count)]
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
                _("rank {rank} has lost another rank: {error}", rank=self.rank, error=str(error).splitlines()[0])
            ) from error

    # -- in fastai's loop --------------------------------------------------------------------------------------

    def callback(self) -> Any:
        """What does all of this at the right moments of a fit."""
        from fastai.callback.core import Callback

        ranks = self

        class Together(Callback):  # type: ignore[misc]
            """After MixedPrecision, whose predictions are still in half precision before."""

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
        """In here BatchNorm layers take their statistics from the batch of all ranks."""
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
    """A BatchNorm class that goes over all ranks, and is still one of its own kind to fastai; None for other layers."""
    from torch import nn

    if not issubclass(kind, nn.modules.batchnorm._BatchNorm) or issubclass(kind, nn.SyncBatchNorm):
        return None
    if ranks._device.type == "cuda":
        return type(f"Sync{kind.__name__}", (nn.SyncBatchNorm, kind), {})
    return type(f"Sync{kind.__name__}", (kind,), {"forward": _forward_on_cpu(kind, ranks)})


def _forward_on_cpu(kind: type, ranks: Ranks) -> Callable[[Any, Any], Any]:
    """What torch's SyncBatchNorm does, which is for GPUs alone."""
    import torch

    class Sum(torch.autograd.Function):  # type: ignore[misc]
        """Over all ranks; so is its gradient."""

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
        number = x.numel() // x.shape[1] * ranks.count
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
