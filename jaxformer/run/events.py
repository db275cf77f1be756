"""A run's scalars in TensorBoard's files, each step once, however often the run was stopped.

What a process was killed with had written may lie behind the step that the run goes on from, or not have reached it.
"""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def open_events(folder: Path, lines: Iterable[Mapping[str, Any]], is_kept: Callable[[int, Iterable[str]], bool]):
    """Returns clu's writer of TensorBoard's files in a run folder, once these hold what `metrics.jsonl` does.

    Args:
        lines: of `metrics.jsonl`, each with its step and its scalars by name.
        is_kept: whether scalars of a step, by their names, stay where a run goes on.

    Raises:
        ImportError: TensorFlow is not installed.
    """
    from clu import metric_writers

    steps = _cut_back(folder, is_kept)
    writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))
    for line in lines:
        step = line["step"]
        missing = {name: float(x) for name, x in line.items() if name != "step" and step not in steps[name]}
        if missing:
            writer.write_scalars(step, missing)
    return writer


def _cut_back(folder: Path, is_kept: Callable[[int, Iterable[str]], bool]) -> dict[str, set[int]]:
    """Removes what is not kept, and what is there twice; returns the steps that are left by name of the scalar."""
    import tensorflow as tf

    steps = collections.defaultdict(set)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        kept, count = [], 0
        with contextlib.suppress(tf.errors.DataLossError):  # The end of a file whose process was killed.
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event, count = tf.compat.v1.Event.FromString(record), count + 1
                names = [value.tag for value in event.summary.value]
                # The first event of a file holds no scalars.
                if is_kept(event.step, names) and not any(event.step in steps[name] for name in names):
                    kept.append(record)
                    for name in names:
                        steps[name].add(event.step)
        if len(kept) < count:
            # A name that TensorBoard does not read.
            unfinished = folder / "events.unfinished"
            with tf.io.TFRecordWriter(str(unfinished)) as file:
                for record in kept:
                    file.write(record)
            os.replace(unfinished, path)
    return steps
