"""Saving and restoring: bit by bit, the right step, whatever happened to the disk."""

import errno
import functools
import os
import shutil
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from jaxformer.checkpoint.store import Checkpoints
from jaxformer.checkpoint.train_state import (
    CheckpointConfig,
    abstract,
    open_checkpoints,
    restore,
    restore_params,
    save,
    save_and_wait,
)
from jaxformer.config import TrainingFailure, UserError
from jaxformer.model import ModelConfig
from jaxformer.optimizer import Optimizer, OptimizerConfig, make_optimizer
from jaxformer.step import init_state

pytestmark = pytest.mark.device_free

MODEL = ModelConfig(vocabulary_size=7, width=12, depth=3, heads=2, qk_norm=True)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1), steps=9)
DATA_STATE = {"next_index": 40, "nested": {"a": [1, 2], "b": None}}
RECORD = {"seconds": 1.25, "identity": {"name": "tiny~12ab34"}}


@functools.cache
def initial_state(optimizer=OPTIMIZER):
    return init_state(MODEL, optimizer, seed=0)


def make_state(step, optimizer=OPTIMIZER):
    """Returns a state in which every number of the parameters and the optimizer is random."""
    state = initial_state(optimizer)
    rng = np.random.default_rng(step)

    def noise(x):
        values = rng.standard_normal(x.shape) if x.dtype == jnp.float32 else rng.integers(1, 99, x.shape)
        return jnp.asarray(values, x.dtype)

    params, opt_state, guard = jax.tree.map(noise, (state.params, state.opt_state, state.guard))
    return state.replace(step=jnp.int32(step), params=params, opt_state=opt_state, guard=guard)


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder in which steps 1, 3, 4 and 12 were saved and two are kept."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with open_checkpoints(folder, CheckpointConfig(keep=2)) as checkpoints:
        for step in (1, 3, 4, 12):
            assert save(checkpoints, make_state(step), DATA_STATE | {"step": step}, RECORD) is None
        save(checkpoints, make_state(12), DATA_STATE, RECORD)  # saved already: left as it is
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of that folder, to do damage to."""
    return shutil.copytree(whole, tmp_path / "checkpoints")


@pytest.fixture
def checkpoints(folder):
    with open_checkpoints(folder, CheckpointConfig()) as checkpoints:
        yield checkpoints


def files_of(step_folder):
    """Returns the files of a step that hold something, in order."""
    return sorted(path for path in step_folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip(path, bit):
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_restored_state_is_the_saved_one_bit_by_bit(checkpoints):
    restored = restore(checkpoints, initial_state(), 4)
    assert_equal(restored.state, make_state(4))
    assert restored.data_state == DATA_STATE | {"step": 4}
    assert restored.record == RECORD
    assert restored.damaged == []


@dataclass(frozen=True)
class Odd(Optimizer):
    """An optimizer of one's own whose state has arrays of other shapes than the parameters."""

    def transform(self, config, model):
        state = {"count": jnp.int32(0), "nested": ((jnp.zeros(3), jnp.zeros((2, 1, 5))), {"empty": ()})}
        return optax.GradientTransformation(lambda params: state, lambda updates, state, params=None: (updates, state))


@pytest.mark.parametrize("name", ["muon", Odd()], ids=["two", "own"])
def test_state_of_another_optimizer_is_restored_bit_by_bit(tmp_path, name):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1, name=name), steps=9)
    with open_checkpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        assert save_and_wait(checkpoints, make_state(3, optimizer), DATA_STATE, RECORD) == []
        assert_equal(restore(checkpoints, initial_state(optimizer)).state, make_state(3, optimizer))


def test_newest_step_is_restored_unless_another_is_named(checkpoints):
    restored = restore(checkpoints, initial_state())
    assert_equal(restored.state, make_state(12))
    assert restored.data_state == DATA_STATE | {"step": 12}


@pytest.mark.parametrize(("step", "expected"), [(None, 12), (4, 4)])
def test_parameters_are_restored_alone(checkpoints, step, expected):
    params = restore_params(checkpoints, initial_state().params, step)
    assert_equal(params, make_state(expected).params)


def test_only_the_newest_are_kept(checkpoints, folder):
    assert checkpoints.steps() == [4, 12]
    assert sorted(path.name for path in folder.iterdir()) == ["12", "4"]


def test_best_by_validation_is_kept_while_newer_ones_come(folder):
    with open_checkpoints(folder, CheckpointConfig(keep=1)) as checkpoints:
        checkpoints.validation_losses = {4: 1.0, 12: float("nan")}
        for step in (20, 24):
            save(checkpoints, make_state(step), DATA_STATE, RECORD)
            checkpoints.validation_losses[step] = 2.0
    assert sorted(path.name for path in folder.iterdir()) == ["24", "4"]


def test_missing_step_is_an_error_that_names_those_that_exist(checkpoints):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*; there are \[4, 12\]"):
        restore(checkpoints, initial_state(), 3)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*; there are \[4, 12\]"):
        restore_params(checkpoints, initial_state().params, 3)


def test_folder_without_checkpoints_says_so(tmp_path):
    with (
        open_checkpoints(tmp_path / "empty", CheckpointConfig()) as checkpoints,
        pytest.raises(FileNotFoundError, match="there are none"),
    ):
        restore(checkpoints, initial_state())


def test_file_in_place_of_the_folder_is_the_users_to_move(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints: not a folder; move it elsewhere"):
        open_checkpoints(tmp_path / "checkpoints", CheckpointConfig())


@pytest.mark.parametrize("failures", [2, 9])
def test_a_checkpoint_that_is_removed_while_it_is_listed_is_not_missed(folder, monkeypatch, failures):
    times, open_now = iter(range(failures)), Checkpoints._open

    def open_later(checkpoints):
        if next(times, None) is None:
            return open_now(checkpoints)
        raise NotADirectoryError("Path is not a directory: 4")  # As Orbax raises it, without a number.

    monkeypatch.setattr(Checkpoints, "_open", open_later)
    if failures == 2:
        with open_checkpoints(folder) as checkpoints:
            assert checkpoints.steps() == [4, 12]
    else:
        with pytest.raises(UserError, match=r"^checkpoints \S+: Path is not a directory: 4$"):
            open_checkpoints(folder)


def test_leftovers_of_interrupted_saves_are_removed_by_who_writes_and_left_by_who_reads(folder):
    leftover = folder / "16.orbax-checkpoint-tmp"
    (leftover / "params").mkdir(parents=True)
    with open_checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [4, 12] and leftover.exists()
    with open_checkpoints(folder, CheckpointConfig()) as checkpoints:
        assert checkpoints.steps() == [4, 12] and not leftover.exists()


def test_reading_reports_nothing_and_changes_nothing(folder, capfd, caplog):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with open_checkpoints(folder) as checkpoints:
        restore_params(checkpoints, initial_state().params)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert caplog.records == [] and capfd.readouterr() == ("", "")


def test_checkpoints_of_another_run_are_refused_with_the_differing_keys_and_left_as_they_are(checkpoints, folder):
    before = {path: path.read_bytes() for path in files_of(folder)}
    with pytest.raises(UserError, match=r"belong to another configuration \(name: tiny~12ab34 -> huge\)"):
        restore(checkpoints, initial_state(), belongs_to={"identity": {"name": "huge"}})
    assert {path: path.read_bytes() for path in files_of(folder)} == before
    assert restore(checkpoints, initial_state(), belongs_to={"identity": RECORD["identity"]}).record == RECORD


DAMAGE = {
    "truncated_data": lambda step: [truncate(path) for path in (step / "params").rglob("d/*")],
    "zeroed_data": lambda step: [path.write_bytes(bytes(path.stat().st_size)) for path in step.rglob("d/*")],
    "no_data": lambda step: [path.unlink() for path in (step / "rest").rglob("d/*")],
    "no_manifest": lambda step: [path.unlink() for path in step.rglob("manifest.ocdbt")],
    "truncated_metadata": lambda step: truncate(step / "params" / "_METADATA"),
    "no_params": lambda step: shutil.rmtree(step / "params"),
    "no_record": lambda step: shutil.rmtree(step / "record"),
    "truncated_record": lambda step: truncate(step / "record" / "metadata"),
    "nothing": lambda step: [shutil.rmtree(step), step.mkdir()],
    "another_step": lambda step: [shutil.rmtree(step), shutil.copytree(step.parent / "4", step)],
    "another_position": lambda step: replace(step / "record" / "metadata", '"next_index": 40', '"next_index": 41'),
}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path, old, new):
    text = path.read_text()
    old, new = (old, new) if old in text else (old.replace(": ", ":"), new.replace(": ", ":"))
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_step_is_reported_in_a_line_and_set_aside_and_the_older_one_is_used(damage, folder, capfd):
    damage(folder / "12")
    with open_checkpoints(folder, CheckpointConfig()) as checkpoints:
        restored = restore(checkpoints, initial_state())
        assert_equal(restored.state, make_state(4))
        (line,) = restored.damaged
        assert line.startswith(f"checkpoint 12 in {folder} is damaged (")
        assert line.endswith("); it is set aside as 12.damaged")
        assert len(line.splitlines()) == 1 and len(line) < 300 + len(str(folder))
        # It can be saved again.
        save(checkpoints, make_state(12), DATA_STATE, RECORD)
    assert capfd.readouterr().err == ""
    with open_checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [4, 12]
        assert_equal(restore(checkpoints, initial_state()).state, make_state(12))
    assert (folder / "12.damaged").is_dir()


def test_where_no_step_can_be_used_that_is_an_error_and_nothing_is_changed(folder):
    for step in ("4", "12"):
        truncate(folder / step / "params" / "_METADATA")
    before = {path: path.read_bytes() for path in files_of(folder)}
    with (
        open_checkpoints(folder, CheckpointConfig()) as checkpoints,
        pytest.raises(UserError, match=r"no step can be used \(12: .*; 4: .*choose another --workdir"),
    ):
        restore(checkpoints, initial_state())
    assert {path: path.read_bytes() for path in files_of(folder)} == before


@pytest.mark.slow
def test_every_flipped_bit_that_changes_what_is_restored_is_noticed(folder, capfd):
    """A bit of every file at least; of the larger ones several, drawn at random."""
    rng = np.random.default_rng(0)
    files = files_of(folder / "12")
    shares = np.array([path.stat().st_size for path in files], float)
    chosen = [*range(len(files)), *rng.choice(len(files), 6, p=shares / shares.sum())]
    noticed = 0
    with open_checkpoints(folder) as checkpoints:
        for number in chosen:
            path = files[number]
            content = path.read_bytes()
            flip(path, int(rng.integers(8 * len(content))))
            restored = restore(checkpoints, initial_state())
            path.write_bytes(content)
            step = int(restored.state.step)
            noticed += step == 4
            assert_equal(restored.state, make_state(step))
            assert restored.data_state == DATA_STATE | {"step": step} and restored.record == RECORD
    # Much of the files is padding and what Orbax does not read.
    assert noticed > len(chosen) // 4
    assert len(capfd.readouterr().err) == 0


def test_parameters_with_a_flipped_bit_are_not_used(folder):
    path = max((folder / "12" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    flip(path, 4 * path.stat().st_size)
    with open_checkpoints(folder) as checkpoints:
        assert_equal(restore_params(checkpoints, initial_state().params), make_state(4).params)
        with pytest.raises(UserError, match="no step can be used"):
            restore_params(checkpoints, initial_state().params, 12)


def fail_to_write(monkeypatch, error):
    """Lets the background part of every save fail, after some files were written."""

    def failing(self, directory, *arguments, **options):
        raise error

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", failing)


def open_proven(folder, config):
    """Opens checkpoints of which one was read back: what is saved next is not waited for."""
    checkpoints = open_checkpoints(folder, config)
    checkpoints.prove()
    return checkpoints


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_failed_save_is_reported_at_the_next_look_and_leaves_what_was_there(folder, monkeypatch):
    with open_proven(folder, CheckpointConfig(keep=2)) as checkpoints:
        with monkeypatch.context() as patch:
            fail_to_write(patch, NO_SPACE)
            assert save(checkpoints, make_state(20), DATA_STATE, RECORD) is None
            reported = checkpoints.check(wait=True)
        assert reported == (
            f"saving step 20 in {folder} failed (no space left on the disk); step 12 is the newest that is kept; "
            "the next save tries again"
        )
        assert sorted(path.name for path in folder.iterdir()) == ["12", "4"]
        assert checkpoints.check() is None
        assert save_and_wait(checkpoints, make_state(24), DATA_STATE, RECORD) == []
        assert_equal(restore(checkpoints, initial_state()).state, make_state(24))
    assert sorted(path.name for path in folder.iterdir()) == ["12", "24"]


def test_second_failed_save_in_a_row_ends_the_run(folder, monkeypatch):
    checkpoints = open_checkpoints(folder, CheckpointConfig())
    fail_to_write(monkeypatch, NO_SPACE)
    with pytest.raises(TrainingFailure, match=r"saving step 20 .* the same command resumes from there"):
        save_and_wait(checkpoints, make_state(20), DATA_STATE, RECORD)
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["12", "4"]


def test_save_that_succeeds_between_two_failures_forgives_the_first(folder, monkeypatch):
    with open_proven(folder, CheckpointConfig()) as checkpoints:
        for step in (20, 28):
            with monkeypatch.context() as patch:
                fail_to_write(patch, NO_SPACE)
                save(checkpoints, make_state(step), DATA_STATE, RECORD)
                assert checkpoints.check(wait=True).startswith(f"saving step {step}")
            assert save_and_wait(checkpoints, make_state(step + 1), DATA_STATE, RECORD) == []


def test_closing_after_a_failed_save_says_so(folder, monkeypatch):
    checkpoints = open_proven(folder, CheckpointConfig())
    fail_to_write(monkeypatch, NO_SPACE)
    save(checkpoints, make_state(20), DATA_STATE, RECORD)
    with pytest.raises(TrainingFailure, match="saving step 20"):
        checkpoints.close()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes"),
    ],
    ids=["memory", "files", "permission", "device"],
)
def test_step_that_cannot_be_read_for_now_is_not_taken_for_damaged(error, folder, monkeypatch):
    with open_checkpoints(folder, CheckpointConfig()) as checkpoints:
        with monkeypatch.context() as patch:
            read = checkpoints._manager.restore

            def fail(step, args):
                if "params" in dict(args.items()):
                    raise ValueError("something else") from error
                return read(step, args=args)

            patch.setattr(checkpoints._manager, "restore", fail)
            with pytest.raises(UserError, match=r"checkpoint 12 in .* cannot be read .* it is left as it is"):
                restore(checkpoints, initial_state())
        assert_equal(restore(checkpoints, abstract(initial_state())).state, make_state(12))
    assert sorted(path.name for path in folder.iterdir()) == ["12", "4"]


def test_damaged_step_is_never_deleted_also_where_one_of_its_number_was_set_aside(folder):
    (folder / "12.damaged").mkdir()
    truncate(folder / "12" / "params" / "_METADATA")
    with open_checkpoints(folder, CheckpointConfig()) as checkpoints:
        (line,) = restore(checkpoints, initial_state()).damaged
    assert line.endswith("set aside as 12.damaged1")
    assert sorted(path.name for path in folder.iterdir()) == ["12.damaged", "12.damaged1", "4"]


def test_step_before_the_newest_is_not_saved_in_silence(folder):
    with open_checkpoints(folder, CheckpointConfig()) as checkpoints:
        reported = save(checkpoints, make_state(7), DATA_STATE, RECORD)
    assert "saving step 7" in reported and "Orbax saves no step before 12" in reported


def test_failed_save_is_reported_though_something_else_ends_the_run(folder, monkeypatch, capfd):
    fail_to_write(monkeypatch, NO_SPACE)
    with pytest.raises(KeyError), open_proven(folder, CheckpointConfig()) as checkpoints:
        save(checkpoints, make_state(20), DATA_STATE, RECORD)
        raise KeyError
    assert capfd.readouterr().err.startswith(f"jaxformer: saving step 20 in {folder} failed (no space left")


def test_first_save_that_writes_nothing_without_an_error_ends_the_run(folder, monkeypatch):
    # As Orbax did below a folder named like `[1]`, whose files it found by a pattern.
    monkeypatch.setattr(type(epath.Path()), "glob", lambda self, pattern: iter(()))
    with open_checkpoints(folder, CheckpointConfig(keep=1)) as checkpoints:
        with pytest.raises(TrainingFailure) as failure:
            save_and_wait(checkpoints, make_state(20), DATA_STATE, RECORD)
        text = str(failure.value)
        assert text.startswith(f"checkpoints {folder}: step 20 was saved and cannot be read back (")
        assert text.endswith("); it is set aside as 20.damaged; choose another --workdir")
        assert checkpoints.steps() == [4, 12]


@pytest.mark.parametrize("item", ["params", "rest"])
def test_first_save_that_holds_other_numbers_ends_the_run(item, tmp_path, monkeypatch):
    kept = ocp.args.StandardSave

    def change(arrays):
        name = next(iter(arrays))
        is_item = (item == "rest") == ("step" in arrays)
        return kept(arrays | {name: arrays[name] + 1} if is_item else arrays)

    monkeypatch.setattr(ocp.args, "StandardSave", change)
    with (
        open_checkpoints(tmp_path, CheckpointConfig()) as checkpoints,
        pytest.raises(TrainingFailure, match=r"differs from what was saved\); it is set aside"),
    ):
        save(checkpoints, make_state(2), DATA_STATE, RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["2.damaged"]


def test_first_save_of_a_process_is_waited_for_and_those_after_it_are_not(folder, monkeypatch):
    with open_checkpoints(folder, CheckpointConfig(keep=2)) as checkpoints:
        monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", wait_a_moment(ocp.StandardCheckpointHandler))
        save(checkpoints, make_state(20), DATA_STATE, RECORD)
        assert checkpoints.steps() == [12, 20] and not checkpoints._manager.is_saving_in_progress()
        save(checkpoints, make_state(21), DATA_STATE, RECORD)
        assert checkpoints._manager.is_saving_in_progress()
    assert sorted(path.name for path in folder.iterdir()) == ["20", "21"]


def wait_a_moment(handler):
    finalize = handler.finalize

    def slow(self, directory, *arguments, **options):
        time.sleep(0.2)
        return finalize(self, directory, *arguments, **options)

    return slow


@pytest.mark.parametrize("name", ["x[1]", "x*", "x?", "a\\b", "**", "gs:", "link/..", "\udcff"])
def test_checkpoints_lie_in_their_folder_whatever_its_name(name, tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    # What a pattern would find besides.
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "xy")
    folder = tmp_path / name / "checkpoints"
    for step in (1, 2):
        with open_checkpoints(folder, CheckpointConfig(keep=1)) as checkpoints:
            assert save_and_wait(checkpoints, make_state(step), DATA_STATE, RECORD) == []
    with open_checkpoints(folder) as checkpoints:
        assert_equal(restore(checkpoints, initial_state()).state, make_state(2))
    assert os.listdir(folder) == ["2"]
