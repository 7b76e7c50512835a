"""A backend for tests, of plain Python: it starts in no time, and is interrupted and resumed as the real ones are.

It minimises a parabola with noise. `job.options`: `rate`, where the noise and the speed come from; `shift`, what is
left at the end; `pause`, seconds a step; `fail`, an error on purpose; `kill`, a step at which it ends without a word;
`until`, a file that the second epoch waits for; `hidden`, whether it depends on how many steps its process has made;
`clock`, whether its state holds the time, and `chance`, whether its noise is another each time.
"""

import hashlib
import json
import math
import os
import random
import signal
import time

from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.training.interrupt import Interrupted

STEPS = 4
# In place of cuDNN: where this file is, it is broken.
BROKEN_CUDNN = "/dev/shm/cuda/broken_cudnn"


def convolve():
    if os.path.exists(BROKEN_CUDNN):
        raise RuntimeError("CUDNN_STATUS_NOT_INITIALIZED")


def read_state(file):
    return json.loads(file.readline())


def train(context):
    train, options = context.experiment.train, context.experiment.job.options
    store = CheckpointStore(context.run.checkpoints, context.experiment.checkpoint.keep)
    found = store.newest(lambda file: json.loads(file.readline()))
    state = found[1] if found else {"weight": 1.0, "rows": [], "best": math.inf}
    if found and not store.has_best():
        state["best"] = math.inf
    position = found[0] if found else Position(0, 0)
    context.interruption.hold()
    context.progress.update(epochs=train.epochs, steps_per_epoch=STEPS)
    rate, shift = float(options.get("rate", 0.1)), float(options.get("shift", 0.0))
    if options.get("fail"):
        raise ValueError(str(options["fail"]))

    def save(position, best=False):
        store.save(position, lambda file: file.write(json.dumps(state).encode() + b"\n"), best)

    made = 0
    for epoch in range(position.epoch, train.epochs):
        for step in range(position.step if epoch == position.epoch else 0, STEPS):
            noise = random.Random(f"{train.seed} {rate} {epoch} {step}").gauss(0, 0.05)
            noise = random.SystemRandom().gauss(0, 0.05) if options.get("chance") else noise
            made += 1
            noise += made / 100 if options.get("hidden") else 0
            state.update({"clock": time.time()} if options.get("clock") else {})
            state["weight"] -= rate * 2 * (state["weight"] + noise)
            time.sleep(float(options.get("pause", 0)))
            while epoch and options.get("until") and not os.path.exists(options["until"]):
                if context.interruption.requested:
                    break
                time.sleep(0.01)
            if options.get("kill") == epoch * STEPS + step:
                os.kill(os.getpid(), signal.SIGKILL)
            context.progress.step(epoch + 1, step + 1, {"loss": state["weight"] ** 2})
            if context.interruption.requested:
                save(Position(epoch, step + 1))
                raise Interrupted
        metrics = {"loss": state["weight"] ** 2, "val_loss": state["weight"] ** 2 + shift}
        state["rows"].append({"epoch": epoch + 1, **metrics, "seconds": 0.0})
        context.run.write_history(state["rows"])
        context.progress.epoch_end(epoch + 1, STEPS, metrics)
        better = metrics["val_loss"] < state["best"]
        state["best"] = min(state["best"], metrics["val_loss"])
        save(Position(epoch + 1, 0), better)
    context.run.write_history(state["rows"])
    result = {"metrics": dict(state["rows"][-1]), "seconds_training": 0.0, "epochs": train.epochs}
    result["steps"] = train.epochs * STEPS
    if context.experiment.finish.evaluate:
        result["metrics"]["test_loss"] = state["weight"] ** 2 + shift
    return {**result, "weights_sha256": hashlib.sha256(repr(state["weight"]).encode()).hexdigest()}
