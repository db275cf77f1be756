"""Scalars to the screen, to a file of JSON lines and, where clu's writer can be imported, to TensorBoard."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxformer.model import ModelConfig

# Dense bfloat16 (V100, T4: float16) matmul peaks in TFLOP/s, from the makers' data sheets, by a part of JAX's name of
# the device; the first that fits counts.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}


class TrainingFailure(RuntimeError):
    """The run cannot go on; its text is the line that the command prints before exit status 1."""


def peak_tflops(device_kind: str) -> float | None:
    """Returns the peak of a device in TFLOP/s, or None where it is not known."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device_kind)), None)


def matmul_parameters(config: ModelConfig) -> int:
    """Returns the parameters that multiply every token: all matrices but the lookups, the unembedding among them."""
    D, H, G, K, F = config.width, config.heads, config.G, config.K, config.F
    attention = D * (H + 2 * G) * K + H * K * D
    feed_forward = D * F * (3 if config.activation == "swiglu" else 2)
    return config.depth * (attention + feed_forward) + config.vocabulary_size * D


def training_flops_per_token(config: ModelConfig, row_length: int) -> float:
    """Returns the FLOPs of forward and backward pass per token, with causal attention over whole rows.

    6 per matmul parameter and 6 x L x H x K x T for attention: half of the square that PaLM (Chowdhery et al. 2022,
    arXiv 2204.02311) counts, since a causal token sees half of its row on average. Document masks are not subtracted,
    so that the figure can be compared with other libraries'; a sliding window is.
    """
    window = min(config.sliding_window or row_length, row_length)
    visible = window - window**2 / (2 * row_length)  # keys of a query on average
    return 6 * matmul_parameters(config) + 12 * config.depth * config.heads * config.K * visible


class Writer:
    """Writes scalars by step to `metrics.jsonl` and, if there is one, to a TensorBoard writer."""

    def __init__(self, folder: Path, first_step: int, tensorboard=None):
        path = folder / "metrics.jsonl"
        _truncate(path, first_step)
        self._file = path.open("a", buffering=1)
        self._tensorboard = tensorboard

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line: the step and its scalars, non-finite ones as strings, since JSON has no word for them."""
        values = {name: float(value) for name, value in scalars.items()}
        line = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        if self._tensorboard:
            self._tensorboard.write_scalars(step, values)

    def close(self) -> None:
        """Flushes and closes."""
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


def open_writer(folder: Path, *, first_step: int) -> tuple[Writer, str]:
    """Returns a writer to a run's folder, and one line on whether TensorBoard is written.

    Args:
        first_step: the step that the run begins or resumes at; what a stopped run wrote about later steps, and its
            validation at this one, are removed, since they come again.
    """
    # TensorFlow greets on standard error otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        from clu import metric_writers

        tensorboard = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))
        note = f"tensorboard --logdir {folder}"
    except ImportError as error:
        tensorboard = None
        note = f"no TensorBoard events ({error.name} is not installed: pip install 'jaxformer[tensorboard]')"
    except Exception as error:  # A TensorFlow that does not fit its libraries fails in many ways; training needs none.
        tensorboard = None
        note = f"no TensorBoard events (clu's writer cannot be imported: {type(error).__name__})"
    return Writer(folder, first_step, tensorboard), note


def recent_loss(folder: Path, steps: int = 100) -> float:
    """Returns the mean training loss over the last steps that a run's `metrics.jsonl` holds, nats per target."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    return float(np.mean(losses[-steps:]))


def _truncate(path: Path, first_step: int) -> None:
    """Removes the lines after a step, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            break
        # The validation at the first step itself is repeated.
        if values["step"] < first_step or (values["step"] == first_step and "train/loss" in values):
            kept.append(line + "\n")
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(kept))
    unfinished.rename(path)


class Progress:
    """Collects metrics, writes them by step and prints a line every so many steps."""

    def __init__(
        self,
        writer: Writer,
        *,
        steps: int,
        every_steps: int,
        schedule: Callable[[int], float],
        flops_per_token: float,
        peak: float | None,
    ):
        """Args: as in the run's configuration; `schedule` gives the learning rate, `peak` the device's TFLOP/s."""
        self._writer = writer
        self._steps = steps
        self._every = every_steps
        self._schedule = schedule
        self._flops_per_token = flops_per_token
        self._peak = peak
        self._waiting: list[tuple[int, dict]] = []
        self._since = time.perf_counter()
        self._untimed = None

    def add(self, step: int, metrics: dict) -> None:
        """Takes the metrics of a dispatched step, which may not have been computed yet."""
        if self._waiting and self._waiting[-1][0] % self._every == 0:
            self.flush()
        self._waiting.append((step, metrics))
        if self._untimed is None:
            jax.block_until_ready(metrics)
            print(f"first step  after {time.perf_counter() - self._since:.1f} s, mostly compilation", flush=True)
            self._untimed = 1
            self._since = time.perf_counter()

    def flush(self) -> None:
        """Waits for the steps so far, writes their metrics and prints a line."""
        if not self._waiting:
            return
        fetched = [(step, jax.device_get(metrics)) for step, metrics in self._waiting]
        now = time.perf_counter()
        timed = fetched[self._untimed :]
        speed = sum(float(m["targets"]) for _, m in timed) / (now - self._since) if timed else math.nan
        tflops = speed * self._flops_per_token / 1e12
        loss = float(np.mean([m["loss"] for _, m in fetched]))
        for step, m in fetched:
            scalars = {
                "train/loss": m["loss"],
                "train/gradient_norm": m["gradient_norm"],
                "train/learning_rate": self._schedule(step - 1),
            }
            if step == fetched[-1][0] and timed:
                scalars |= {"train/tokens_per_second": speed, "train/tflops": tflops}
            self._writer.write(step, scalars)
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(m[name]):
                    what = name.replace("_", " ")
                    _end_line()
                    raise TrainingFailure(
                        f"the {what} at step {step} is {m[name]}; the last checkpoint before it is kept"
                    )
        last = fetched[-1][0]
        if timed:
            mfu = f"MFU {tflops / self._peak:.1%}" if self._peak else f"{tflops:.3f} TFLOP/s"
            remaining = duration((now - self._since) / len(timed) * (self._steps - last))
            _line(f"step {last}/{self._steps}  loss {loss:.3f}  {speed:,.0f} tokens/s  {mfu}  ETA {remaining}")
        self._waiting = []
        self._untimed = 0
        self._since = time.perf_counter()

    def add_validation(self, step: int, validation: dict[str, float]) -> None:
        """Writes and prints a validation; flush first, so that its time is not taken for a step's."""
        self._writer.write(step, {f"validation/{name}": value for name, value in validation.items()})
        _line(f"step {step}/{self._steps}  validation: {describe_validation(validation)}", keep=True)
        self._since = time.perf_counter()


def _line(text: str, *, keep: bool = False) -> None:
    """Prints a progress line; on a terminal the next one replaces it unless it is kept."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="\n" if keep else "", flush=True)
    else:
        print(text, flush=True)


def _end_line() -> None:
    """Leaves the progress line that stands on a terminal, so that what follows does not overwrite it."""
    if sys.stdout.isatty():
        print(flush=True)


def duration(seconds: float) -> str:
    """Returns seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def describe_validation(validation: dict[str, float]) -> str:
    """Returns what `validate` found, in words."""
    return f"{validation['loss']:.4f} nats per token, {validation['bits_per_byte']:.4f} bits per byte"
