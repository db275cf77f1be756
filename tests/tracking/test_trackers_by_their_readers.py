"""A run that was killed and went on, as TensorBoard, trackio and Weights & Biases themselves read it, all offline."""

import json
import os
import signal
import struct
import subprocess
import sys
import zlib

import pytest

from jaxformer.tracking.config import TRACKERS

pytestmark = pytest.mark.device_free

NAMES = ["train/loss", "validation/loss", "picture", "page", "sample"]
ATTEMPT = """
import os, signal, sys, time
from pathlib import Path

from jaxformer.run.metrics import Writer
from jaxformer.run.samples import read_samples, write_samples
from jaxformer.tracking.config import TrackingConfig
from jaxformer.tracking.tracker import Trackers, open_trackers

kind, first_step, last_step, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
opened = open_trackers(TrackingConfig(to=kind), Path("run"), "tiny seed 0", "tiny", "a1b2c3")
print(opened[kind].address)
trackers = Trackers(opened.items())
trackers.log_hyperparameters({"config": {"model": {"width": 16, "norm": "rmsnorm", "attention": None}}, "seed": 0})
writer, samples = Writer(Path("run"), first_step, trackers), read_samples(Path("run"), first_step)
for step in range(first_step, last_step + 1):
    if step % 4 == 0 and step > 0:
        writer.write(step, {"validation/loss": step / 2})
        samples[step] = f"a <text> of step {step}"
        trackers.log(step, {"sample": samples[step]})
        write_samples(Path("run"), samples)
    if step < last_step:
        writer.write(step + 1, {"train/loss": float("nan") if step == 2 else step + 1.0})
if end == "killed":
    time.sleep(0.5)  # In which some of them write what they were given, and others do not.
    os.kill(os.getpid(), signal.SIGKILL)
trackers.log(12, {"picture": Path("picture.png")})
if kind != "tensorboard":  # Which has no pages.
    trackers.log(12, {"page": Path("page.html")})
trackers.end_step()
trackers.log_summary({"status": "finished", "validation/loss": 6.0})
trackers.close()
"""


@pytest.fixture(scope="module", params=TRACKERS)
def run(request, tmp_path_factory):
    """Returns the tracker's name, and the folder in which a run of 12 steps was killed behind step 6 and step 10."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    pytest.importorskip(kind)
    (folder / "run").mkdir()
    (folder / "page.html").write_text("<p>page</p>")
    (folder / "picture.png").write_bytes(png())
    environment = os.environ | {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    for first_step, last_step, end in ((0, 6, "killed"), (4, 10, "killed"), (8, 12, "finished")):
        command = [sys.executable, "-c", ATTEMPT, kind, str(first_step), str(last_step), end]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == (-signal.SIGKILL if end == "killed" else 0), done.stderr
        assert len(done.stdout.splitlines()) == 1 or end == "killed", done.stdout
    return kind, folder


def png():
    """Returns a picture of 2 x 1 grey pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0ab")) + chunk(b"IEND", b"")


def read(kind, folder):
    """Returns a list of (step, value) for each name, hyperparameters and summary, as the tracker's readers say."""
    return {"tensorboard": read_tensorboard, "trackio": read_trackio, "wandb": read_wandb}[kind](folder)


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(folder / "run"), purge_orphaned_data=False)
    events.Reload()
    series = {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}
    for each in events.Tensors("sample"):
        text = each.tensor_proto.string_val[0].decode()
        series.setdefault("sample", []).append((each.step, "text" if "a <text>" in text else text))
    size = [
        (each.step, "picture" if (each.width, each.height) == (2, 1) else each) for each in events.Images("picture")
    ]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = metadata.parse_session_start_info_plugin_data(content).hparams
    (summary,) = events.Tensors("summary")
    text = summary.tensor_proto.string_val[0].decode().strip("`\n")
    width = found["model.width"].number_value
    return series | {"picture": size}, (width, found["model.norm"].string_value), json.loads(text)


def read_trackio(folder):
    reader = "import json, sys, trackio; from trackio.sqlite_storage import SQLiteStorage as s; "
    reader += "(run,) = trackio.Api().runs('jaxformer'); (alert,) = run.alerts(); "
    reader += "print(json.dumps([s.get_logs('jaxformer', run_id=run.id), run.config, alert['text']]))"
    environment = os.environ | {"TRACKIO_DIR": str(folder / "trackio")}
    done = subprocess.run([sys.executable, "-c", reader], capture_output=True, text=True, env=environment, check=True)
    logs, config, summary = json.loads(done.stdout.splitlines()[-1])
    kinds = {"trackio.markdown": "text", "trackio.image": "picture", "trackio.html": "page"}
    series = {name: [(line["step"], in_words(line[name], kinds)) for line in logs if name in line] for name in NAMES}
    model = config["config"]["model"]
    return series, (model["width"], model["norm"]), json.loads(summary)


def read_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    from jaxformer.tracking.to_wandb import read_records

    kinds, series, summary, model = {"html-file": "page", "image-file": "picture"}, {}, {}, None
    for path in sorted((folder / "run").glob("wandb/offline-run-*-a1b2c3/*.wandb")):
        for record in map(Record.FromString, read_records(path)):
            items = {}
            for item in record.history.item:
                name, *within = item.nested_key
                items |= {name: json.loads(item.value_json)} if not within else {}
                items |= {name: {"_type": json.loads(item.value_json)}} if within == ["_type"] else {}
            for name in NAMES:
                if name in items:
                    series.setdefault(name, []).append((record.history.step.num, in_words(items[name], kinds)))
            for item in record.summary.update:
                summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
            for item in (*record.run.config.update, *record.config.update):
                model = json.loads(item.value_json)["model"] if item.key == "config" else model
    series["sample"] = [(step, "text" if kind == "page" else kind) for step, kind in series["sample"]]
    return series, (model["width"], model["norm"]), {name: summary[name] for name in ("status", "validation/loss")}


def in_words(value, kinds):
    return kinds.get(value["_type"], value) if isinstance(value, dict) else float(value)


def test_each_step_is_there_once_with_the_native_kinds(run):
    kind, folder = run
    series, _, _ = read(kind, folder)
    steps, losses = zip(*series["train/loss"], strict=True)
    assert steps == tuple(range(1, 13))
    assert losses[:2] + losses[3:] == (1.0, 2.0, *map(float, range(4, 13))) and losses[2] != losses[2]
    assert series["validation/loss"] == [(4, 2.0), (8, 4.0), (12, 6.0)]
    assert series["sample"] == [(4, "text"), (8, "text"), (12, "text")]
    assert series["picture"] == [(12, "picture")]
    assert kind == "tensorboard" or series["page"] == [(12, "page")]


def test_configuration_and_summary_are_there(run):
    _, hyperparameters, summary = read(*run)
    assert hyperparameters == (16, "rmsnorm")
    assert summary == {"status": "finished", "validation/loss": 6.0}
