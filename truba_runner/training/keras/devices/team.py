"""Keras on several nodes, one process each: TensorFlow's MultiWorkerMirroredStrategy, set up from Slurm's variables."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.training.backend import Context
from truba_runner.training.keras.devices.nodes import Nodes
from truba_runner.training.keras.internals.several_devices import mend_keras
from truba_runner.training.keras.internals.several_nodes import (
    all_logical_cpus,
    check_versions,
    count_steps,
    mend_trainer,
)
from truba_runner.training.ranks.addresses import worker_addresses

_PARTING_SECONDS = 1.0


class Team(Nodes):
    """All processes of a job that trains one network, one a node, seen from one of them."""

    def __init__(self, context: Context, devices: list[str]) -> None:
        """Connect to the other ranks; before TensorFlow computes anything.

        Raises:
            truba_runner.errors.Failed: other versions are installed, or Slurm's variables do not name the other ranks.
        """
        super().__init__(context, devices)
        check_versions()
        addresses = worker_addresses(os.environ, context.tasks)
        os.environ["TF_CONFIG"] = tf_config(addresses, context.rank)
        # Else gRPC would try to reach the other nodes through a proxy, and wait for ever.
        os.environ["no_grpc_proxy"] = ",".join(address.rpartition(":")[0] for address in addresses)
        print(
            _("rank {rank} of {tasks}: {addresses}", rank=self.rank, tasks=self.tasks, addresses=", ".join(addresses)),
            flush=True,
        )
        self.strategy = _make_strategy(devices)
        # TensorFlow has replaced the handler of SIGTERM.
        if context.interruption.listening:
            context.interruption.listen()
        mend_trainer()
        mend_keras()
        self._sum_over_ranks = self._make_sum()
        self._gather_rows = self._make_gather()

    def adjust(self, model: Any) -> None:
        """Set the only `steps_per_execution` that works with this strategy, 1."""
        if model.steps_per_execution > 1:
            # TensorFlow's graph of such a loop fails in its first step: "You must feed a value for placeholder".
            print(_("train.steps_per_execution is set to 1: several nodes run one step at a time"), flush=True)
            model.steps_per_execution = 1

    # -- data --------------------------------------------------------------------------------------------------

    def split(self, rows: Any) -> Any:
        """Return this rank's share of the row numbers of a global batch: a dataset of an int64 vector per device.

        The devices of all ranks take equal shares one after the other, as those of one node do.
        """
        import tensorflow as tf

        count = tf.size(rows, out_type=tf.int64)

        def share(device: Any) -> Any:
            index = self.rank * self._local + device
            return rows[count * index // self.devices : count * (index + 1) // self.devices]

        return tf.data.Dataset.range(self._local).map(share)

    def feed(self, shares: Any, steps: int) -> Any:
        """Return a dataset of the devices' shares in turn in the form that Keras takes; an epoch has `steps` steps."""
        return count_steps(self.strategy.distribute_datasets_from_function(lambda _: shares), steps)

    # -- between ranks -----------------------------------------------------------------------------------------

    def summed(self, values: list[int]) -> list[int]:
        """Return the sum over all ranks of each of the values."""
        import tensorflow as tf

        # Every device of a rank adds the same values.
        totals = self._sum_over_ranks(tf.constant(values, tf.int32)).numpy()
        return [int(total) // self._local for total in totals]

    def gather(self, data: bytes) -> list[bytes]:
        """Return each rank's `data`, in the order of ranks."""
        import numpy as np
        import tensorflow as tf

        lengths = self.summed([len(data) if rank == self.rank else 0 for rank in range(self.tasks)])
        # Collectives know int32, and take equally much from each device: one row of its rank's data.
        words = -(-max(lengths) // (4 * self._local))
        rows = np.zeros((self._local, words), np.int32)
        rows.reshape(-1).view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
        gathered = self._gather_rows(tf.constant(rows)).numpy().reshape(self.tasks, -1).view(np.uint8)
        return [row[:length].tobytes() for row, length in zip_equal(gathered, lengths)]

    def part(self) -> None:
        """End the ranks' work together: wait until all ranks are here, and know it of each other."""
        self.wait_for_all()
        # The last part of a ring's sum is fetched from a rank that already has its own sum, and must not exit yet.
        time.sleep(_PARTING_SECONDS)

    def _make_sum(self) -> Callable[[Any], Any]:
        import tensorflow as tf

        strategy = self.strategy

        def total(values: Any) -> Any:
            # One tensor for all devices of a rank would be added once, not once per device.
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


# -- setting up ------------------------------------------------------------------------------------------------


def tf_config(addresses: list[str], rank: int) -> str:
    """Return the value of the variable TF_CONFIG, from which TensorFlow learns the workers' addresses."""
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})


def _make_strategy(devices: list[str]) -> Any:
    import tensorflow as tf

    on_cpu = devices[0].startswith("CPU")
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=kinds.RING if on_cpu else kinds.NCCL)
    try:
        with all_logical_cpus(len(devices) if on_cpu else 0):
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except RuntimeError as error:
        raise Failed(
            "TensorFlow was in use before the nodes were connected ({error}). Move the TensorFlow code at the top "
            "level of the job's module into build_model or load_data.",
            error=error,
        ) from error
