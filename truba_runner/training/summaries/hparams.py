"""Write the event file of TensorBoard's HParams page: a run's settings and final metrics."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from truba_runner.config.schema import Experiment
from truba_runner.log import print_error
from truba_runner.storage.files import write_atomically

# A fixed name, so that a restarted run replaces the file.
_FILE = "events.out.tfevents.0000000001.hparams"


def write(
    folder: Path, run_id: str, values: Mapping[str, Any], finished: bool, metrics: Mapping[str, Any] | None = None
) -> None:
    """Write an HParams session of `values` into a run's event folder; a failure is only printed, as the run has ended.

    `metrics` are those of `result.json`; the page takes others from the event files below the folder.
    """
    try:
        content = _events(run_id, values, finished, metrics or {})
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(folder / _FILE, content)
    except (ImportError, OSError) as error:
        print_error("the settings could not be written for TensorBoard ({error})", error=error)


def values_of(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that decide the training of a run outside a sweep, by command-line key."""
    found: dict[str, Any] = {"data.name": experiment.data.name}
    for section, settings in (
        ("train", asdict(experiment.train)),
        ("job.options", experiment.job.options),
        ("job.hyperparameters", experiment.job.hyperparameters),
        ("data.options", experiment.data.options),
    ):
        found.update({f"{section}.{key}": value for key, value in settings.items() if value not in (None, [], {}, "")})
    return found


def _events(run_id: str, values: Mapping[str, Any], finished: bool, metrics: Mapping[str, Any]) -> bytes:
    # Not TensorBoard's own helpers: they import TensorFlow if it is installed, which takes ten seconds.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    start = SessionStartInfo(group_name=run_id, start_time_secs=now)
    for key, value in values.items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, (int, float)):
            start.hparams[key].number_value = value
        else:
            start.hparams[key].string_value = str(value)
    end = SessionEndInfo(status=STATUS_SUCCESS if finished else STATUS_FAILURE, end_time_secs=now)
    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for tag, data in (
        ("session_start_info", HParamsPluginData(version=0, session_start_info=start)),
        ("session_end_info", HParamsPluginData(version=0, session_end_info=end)),
    ):
        writer.write(Event(wall_time=now, summary=_summary(f"_hparams_/{tag}", data)).SerializeToString())
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    points = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
    if points:
        writer.write(Event(wall_time=now, summary=Summary(value=points)).SerializeToString())
    return file.getvalue()


def _summary(tag: str, data: Any) -> Any:
    """Return a summary with `data` in its metadata and an empty value, as the page expects."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT

    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    nothing = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=nothing)
    return Summary(value=[value])
