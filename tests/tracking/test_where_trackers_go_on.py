"""Where a run goes on at a tracker, and where it is seen, by what its server or its files hold; no server is asked."""

import struct
import warnings
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.device_free

BLOCK = 32768


def log_of(records):
    """Returns the file in which Weights & Biases keeps records: in blocks, as LevelDB's log, without checksums."""
    data = b":W&B\0\0\0"
    for record in records:
        is_first, rest = True, record
        while is_first or rest:
            room = BLOCK - len(data) % BLOCK
            if room < 7:
                data, room = data + bytes(room), BLOCK
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (2 if rest else 1) if is_first else (3 if rest else 4)
            data += struct.pack("<IHB", 0, len(part), kind) + part
            is_first = False
    return data


@pytest.fixture
def open_wandb(tmp_path, monkeypatch):
    """Returns a function that opens a tracker on what `wandb.init` returns, and what that was given."""
    wandb = pytest.importorskip("wandb")
    from jaxformer.tracking.to_wandb import WeightsAndBiases

    def open_on(**values):
        given, parts = {}, tmp_path / "wandb" / "run-1-abc"
        run = SimpleNamespace(disabled=False, offline=False, step=4, url="https://x", settings=None)
        vars(run).update(values, settings=SimpleNamespace(sync_dir=str(parts)))
        monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")))
        monkeypatch.setattr(wandb, "login", lambda prompt: True)
        monkeypatch.setattr(wandb, "init", lambda **options: given.update(options) or run)
        return WeightsAndBiases(tmp_path, "project", "name", "group", "abc"), given

    return open_on


def test_wandb_goes_on_behind_what_the_server_holds_and_offline_behind_the_files(open_wandb, tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    records = [Record() for _ in range(2)]
    for record, step in zip(records, (3, 9), strict=True):
        record.history.step.num = step
    for kind in ("run", "offline-run"):
        (tmp_path / "wandb" / f"{kind}-1-abc").mkdir(parents=True)
        (tmp_path / "wandb" / f"{kind}-1-abc" / "run-abc.wandb").write_bytes(
            log_of([record.SerializeToString() for record in records])
        )
    online, given = open_wandb()
    assert (online.last_step, online.address) == (3, "https://x") and given["reinit"] == "create_new"
    offline, _ = open_wandb(offline=True)
    assert (offline.last_step, offline.address) == (9, f"wandb sync --include-online {tmp_path}/wandb")
    disabled, _ = open_wandb(disabled=True)
    assert (disabled.last_step, disabled.address) == (-1, "nowhere, since WANDB_MODE=disabled")


def test_wandb_that_does_not_send_all_at_the_end_says_how_to_send_it(open_wandb, tmp_path):
    def finish(exit_code):
        raise TimeoutError("too slow")

    tracker, given = open_wandb(finish=finish)
    assert given["settings"].finish_timeout > 0 and given["settings"].finish_timeout_raises
    with pytest.raises(TimeoutError, match=f"`wandb sync --include-online {tmp_path}/wandb/run-1-abc` sends it"):
        tracker.finish()


def test_records_are_read_across_blocks_as_far_as_they_are_whole(tmp_path):
    pytest.importorskip("wandb")
    from jaxformer.tracking.to_wandb import read_records

    # Behind the first a block has 3 bytes left, the second takes several blocks, and behind the third 7 bytes are left.
    sizes = (BLOCK - 7 - 7 - 3, 3 * (BLOCK - 7) + 1000, BLOCK - 7 - 1000 - 7 - 7, 50, 5)
    records = [bytes([i]) * size for i, size in enumerate(sizes)]
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(log_of(records))
    assert [*read_records(path)] == records
    path.write_bytes(log_of(records)[:-1])
    assert [*read_records(path)] == records[:-1]


@pytest.fixture
def open_trackio(monkeypatch):
    """Returns a function that opens a tracker on a run at a place, with a warning or none."""
    trackio = pytest.importorskip("trackio")
    from jaxformer.tracking.to_trackio import SQLiteStorage, Trackio

    logs = [{"run": "name", "step": 8}, {"run": "other", "step": 99}]
    monkeypatch.setattr(SQLiteStorage, "get_pending_logs", lambda project: {"logs": logs})
    monkeypatch.setattr(trackio, "finish", lambda: None)

    def open_on(url, next_step, warning=None):
        def init(*arguments, **options):
            if warning:
                warnings.warn(warning, stacklevel=1)
            return SimpleNamespace(url=url, _next_step=next_step)

        monkeypatch.setattr(trackio, "init", init)
        return Trackio("project", "name", "group")

    return open_on


def test_trackio_goes_on_behind_what_its_server_holds_and_what_waits_to_be_sent(open_trackio):
    shown = "https://huggingface.co/spaces/someone/runs"
    for url, next_step, address, last_step in (
        ("someone/runs", 0, shown, 8),
        ("http://host:7860", 12, "http://host:7860", 11),
        (None, 12, "trackio show --project project", 11),
    ):
        tracker = open_trackio(url, next_step)
        assert (tracker.address, tracker.last_step) == (address, last_step)


def test_trackio_is_refused_where_it_does_not_tell_what_it_holds(open_trackio, monkeypatch):
    with pytest.raises(ConnectionError, match="could not recover"):
        open_trackio("someone/runs", 0, "trackio.init() could not recover the previous step")
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
    with pytest.raises(ConnectionError, match="TRACKIO_STORAGE_MODE=sqlite"):
        open_trackio(None, 0)
    assert open_trackio("http://host", 3).last_step == 8
