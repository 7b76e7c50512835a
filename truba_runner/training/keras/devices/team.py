"""Keras on several nodes, one process each: TensorFlow's MultiWorkerMirroredStrategy, told by Slurm who takes part.

Keras 3 broke `fit` under this strategy. Two of its functions are replaced, in this process and only where a job has
several tasks; they are internal to Keras, so the versions are checked first.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training.backend import Context
from truba_runner.training.interrupt import Interruption
from truba_runner.training.keras.devices.replicas import mend_keras
from truba_runner.training.ranks.addresses import worker_addresses

# What the two replaced functions were tried with.
KERAS, TENSORFLOW = "3.15", "2.21"
_PARTING_SECONDS = 1.0


class Team:
    """All processes of a job that trains one network, seen from one of them. Every rank calls the same, in order."""

    def __init__(self, context: Context, devices: list[str]) -> None:
        """Meets the other ranks; before TensorFlow computes anything.

        Raises:
            truba_runner.errors.Failed: other versions are installed, or Slurm did not say who the other ranks are.
        """
        self.rank, self.tasks, self._local = context.rank, context.tasks, len(devices)
        _check_versions()
        addresses = worker_addresses(os.environ, context.tasks)
        os.environ["TF_CONFIG"] = tf_config(addresses, context.rank)
        # gRPC would ask a proxy for the other nodes, and wait for ever.
        os.environ["no_grpc_proxy"] = ",".join(address.rpartition(":")[0] for address in addresses)
        print(
            _("rank {rank} of {tasks}: {addresses}", rank=self.rank, tasks=self.tasks, addresses=", ".join(addresses)),
            flush=True,
        )
        self.strategy = _make_strategy(devices)
        # TensorFlow has taken SIGTERM for itself.
        if context.interruption.listening:
            context.interruption.listen()
        _mend_keras()
        mend_keras()
        self._sum_over_ranks = self._make_sum()
        self._gather_rows = self._make_gather()

    @property
    def devices(self) -> int:
        """Of all ranks together."""
        return self._local * self.tasks

    @property
    def first_device(self) -> int:
        """Which of all devices this rank's first one is."""
        return self._local * self.rank

    def adjust(self, model: Any) -> None:
        """Sets what this strategy cannot do otherwise."""
        if model.steps_per_execution > 1:
            # TensorFlow's graph of such a loop fails in its first step: "You must feed a value for placeholder".
            print(_("train.steps_per_execution is 1: several nodes take each step by itself"), flush=True)
            model.steps_per_execution = 1

    # -- data --------------------------------------------------------------------------------------------------

    def split(self, rows: Any) -> Any:
        """What this rank's devices take of a global batch: a dataset of an int64 vector a device, from row numbers.

        The devices of all ranks take equal shares one after the other, as those of one node do.
        """
        import tensorflow as tf

        count = tf.size(rows, out_type=tf.int64)

        def share(device: Any) -> Any:
            index = self.rank * self._local + device
            return rows[count * index // self.devices : count * (index + 1) // self.devices]

        return tf.data.Dataset.range(self._local).map(share)

    def feed(self, shares: Any, steps: int) -> Any:
        """A dataset of each device's shares in turn, in the form that Keras takes; an epoch has `steps` steps."""
        fed = self.strategy.distribute_datasets_from_function(lambda _: shares)
        # TensorFlow counts shares, but Keras asks for steps.
        fed.__class__ = type("Steps", (type(fed),), {"cardinality": steps})
        return fed

    # -- agreement ---------------------------------------------------------------------------------------------

    def agree(self, interruption: Interruption, due: bool = False) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether any is `due`, by the time that all have called this.

        Every rank gets the same answers. Signals that only others have received count as received here too, so every
        rank does the same about them.
        """
        signals = Interruption.signals()
        *totals, dues = self._sum([*(int(number in interruption.received) for number in signals), int(due)])
        for number, total in zip(signals, totals, strict=True):
            if total and number not in interruption.received:
                interruption.received.append(number)
        return any(totals), bool(dues)

    def from_rank_0(self, values: list[int]) -> list[int]:
        """What rank 0 gave; every rank gives as many."""
        return self._sum(values if self.rank == 0 else [0] * len(values))

    def gather(self, data: bytes) -> list[bytes]:
        """What each rank gave, in the order of ranks."""
        import numpy as np
        import tensorflow as tf

        lengths = self._sum([len(data) if rank == self.rank else 0 for rank in range(self.tasks)])
        # Collectives know int32, and want as much from every device: each brings a row of its rank's.
        words = -(-max(lengths) // (4 * self._local))
        rows = np.zeros((self._local, words), np.int32)
        rows.reshape(-1).view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
        gathered = self._gather_rows(tf.constant(rows)).numpy().reshape(self.tasks, -1).view(np.uint8)
        return [row[:length].tobytes() for row, length in zip(gathered, lengths, strict=True)]

    def check_same(self, model: Any) -> None:
        """Makes sure that every rank has trained the same weights, bit for bit.

        What is not trained, as BatchNormalization's statistics, is each device's own in Keras, and is left out.

        Raises:
            RuntimeError: they differ.
        """
        digest = hashlib.sha256()
        for weight in model.trainable_weights:
            digest.update(weight.numpy().tobytes())
        own = list(digest.digest())
        by_rank = self._sum([byte if rank == self.rank else 0 for rank in range(self.tasks) for byte in own])
        if by_rank != own * self.tasks:
            raise RuntimeError(_("the ranks have trained different weights: their results cannot be trusted"))

    def wait_for_all(self) -> None:
        """Returns once every rank is here; whoever ended earlier would be taken for dead by the others."""
        self._sum([0])

    def part(self) -> None:
        """The last that ranks do together: all are here, and have heard so of each other."""
        self.wait_for_all()
        # The last part of a ring's sum is fetched from a rank that has its own already, and must not be gone.
        time.sleep(_PARTING_SECONDS)

    def _sum(self, values: list[int]) -> list[int]:
        import tensorflow as tf

        # Every device of a rank brings the same.
        return [int(total) // self._local for total in self._sum_over_ranks(tf.constant(values, tf.int32)).numpy()]

    def _make_sum(self) -> Callable[[Any], Any]:
        import tensorflow as tf

        strategy = self.strategy

        def total(values: Any) -> Any:
            # One tensor for all devices of a rank would be added once, not once a device.
            copies = strategy.run(lambda: tf.identity(values))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, copies, axis=None)

        function: Callable[[Any], Any] = tf.function(total)
        return function

    def _make_gather(self) -> Callable[[Any], Any]:
        import tensorflow as tf

        strategy = self.strategy

        def own_row(rows: Any) -> Any:
            replica = tf.distribute.get_replica_context()
            device = replica.replica_id_in_sync_group % self._local
            return replica.all_gather(rows[device : device + 1], axis=0)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def gathered(rows: Any) -> Any:
            return strategy.experimental_local_results(strategy.run(own_row, args=(rows,)))[0]

        function: Callable[[Any], Any] = gathered
        return function


# -- who the others are ----------------------------------------------------------------------------------------


def tf_config(addresses: list[str], rank: int) -> str:
    """The variable TF_CONFIG, from which TensorFlow learns of the other workers."""
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})


def _check_versions() -> None:
    import keras
    import tensorflow as tf

    for name, needed, found in (("Keras", KERAS, keras.__version__), ("TensorFlow", TENSORFLOW, tf.__version__)):
        if not found.startswith(f"{needed}."):
            raise Failed(
                _(
                    "{name} {found} is installed. Several nodes need Keras {keras} and TensorFlow {tensorflow}: Keras "
                    "3 alone cannot train on them, and the two of its functions that are replaced here are known in "
                    "these versions only. Install keras=={keras}.* and tensorflow=={tensorflow}.*, or set "
                    "resources.nodes=1.",
                    name=name,
                    found=found,
                    keras=KERAS,
                    tensorflow=TENSORFLOW,
                )
            )


def _make_strategy(devices: list[str]) -> Any:
    import tensorflow as tf

    on_cpu = devices[0].startswith("CPU")
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=kinds.RING if on_cpu else kinds.NCCL)
    try:
        with _all_logical_cpus(len(devices) if on_cpu else 0):
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except RuntimeError as error:
        raise Failed(
            _(
                "TensorFlow was in use before the nodes had met ({error}). Move what the job's module computes with "
                "TensorFlow at its top level into build_model or load_data.",
                error=error,
            )
        ) from error


@contextmanager
def _all_logical_cpus(count: int) -> Iterator[None]:
    """TensorFlow's strategy takes a node's GPUs all, but one CPU device alone; in here `count` of them (0: as ever)."""
    from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

    original = CollectiveAllReduceExtended._initialize_local_devices

    def all_of_them(self: Any, resolver: Any, worker: str) -> tuple[tuple[str, ...], str]:
        return tuple(f"{worker}/device:CPU:{index}" for index in range(count)), "CPU"

    if count:
        CollectiveAllReduceExtended._initialize_local_devices = all_of_them
    try:
        yield
    finally:
        CollectiveAllReduceExtended._initialize_local_devices = original


# -- Keras -----------------------------------------------------------------------------------------------------


def _mend_keras() -> None:
    """Replaces the two functions of Keras' trainer that fail where values lie on other nodes too."""
    from keras.src.backend.tensorflow import trainer

    original = trainer.reduce_per_replica

    def reduce_per_replica(values: Any, strategy: Any, reduction: str) -> Any:
        """Keras takes the mean over an axis that a metric, a single number, does not have."""
        import tensorflow as tf

        if trainer._collective_all_reduce_multi_worker(strategy) and reduction in ("auto", "mean"):
            return tf.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)
        return original(values, strategy, reduction)

    trainer.reduce_per_replica = reduce_per_replica
