"""A run from trained weights starts exactly there, and from no others, and ends the same however it was stopped."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_run import assert_same_run, command, read_metrics, run_until

import jaxformer.loop
from jaxformer.commands.evaluate import main as evaluate
from jaxformer.commands.plan import main as plan
from jaxformer.commands.prepare import main as prepare
from jaxformer.config import UserError
from jaxformer.data.tokenizer import load_tokenizer
from jaxformer.experiment.experiment import make_state
from jaxformer.experiment.resolution import load_experiment
from jaxformer.huggingface.tensors import flat_parameters, with_vocabulary
from jaxformer.huggingface.tokenizer_json import tokenizer_files
from jaxformer.huggingface.writing import write_model
from jaxformer.run.init_from import check_fits, load_params, open_weights, tokenizer_in, with_tokenizer
from jaxformer.run.inputs import prepare_data
from jaxformer.run.trained import load_trained
from jaxformer.train import main

pytestmark = [pytest.mark.usefixtures("compiled", "default_signals"), pytest.mark.device_free]


@pytest.fixture(scope="module")
def source(uninterrupted, tmp_path_factory):
    """The folder of a finished run, with checkpoints of steps 8 and 12."""
    folder = tmp_path_factory.mktemp("trained") / "source"
    return shutil.copytree(uninterrupted("best_fit"), folder, ignore=lambda *_: [".lock"])


def starting_from(source, experiment_files, workdir, *options):
    return [*command(experiment_files["best_fit"], workdir), f"--init_from={source}", *options]


def read_lineage(workdir):
    return json.loads((workdir / "config.json").read_text())["lineage"]["init_from"]


def paths(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


@pytest.fixture(scope="module")
def warm(source, experiment_files, tmp_path_factory):
    """A run that started from the source and ended."""
    workdir = tmp_path_factory.mktemp("warm") / "run"
    assert main(starting_from(source, experiment_files, workdir)) == 0
    return workdir


def test_it_starts_where_the_source_ended_and_all_but_the_parameters_begins_anew(source, warm):
    ours, theirs = read_metrics(warm), read_metrics(source)
    (at_the_end,) = (line for line in theirs if line["step"] == 12 and "validation/loss" in line)
    assert ours[0] == {**at_the_end, "step": 0}, "the loss of the same documents, to the last bit"
    steps = [[line for line in lines if "train/loss" in line] for lines in (ours, theirs)]
    for mine, before in zip(*steps, strict=True):
        assert mine["train/loss"] < before["train/loss"]
        for name in ("step", "train/batch", "train/learning_rate"):
            assert mine[name] == before[name], "the schedule and the order of the data, which are of the seed"


def test_lineage_tells_what_it_started_from_and_the_folder_alone_gives_the_model(source, warm):
    own = open_weights(str(warm)).record
    record = {"model_type": "jaxformer", "experiment": "best_fit", "seed": 3, "step": 12, "tokens": 12 * 4 * 32}
    assert read_lineage(warm) == {
        "path": str(source),
        **record,
        "params": own["init_from"]["params"],
        "init_from": None,
    }
    assert own["init_from"] == read_lineage(warm) and own["params"] != own["init_from"]["params"]
    identity = json.loads((warm / "config.json").read_text())["identity"]
    assert identity["init_from"] == open_weights(str(source)).digest == own["init_from"]["params"]
    assert load_trained(warm).step == 12


def test_parameters_are_taken_over_and_the_optimizer_begins_anew(source, experiment_files):
    trained = load_trained(source)
    expected = jax.tree.map(np.asarray, trained.state.params)
    experiment = load_experiment(str(experiment_files["best_fit"]))
    state = make_state(experiment, seed=5, token_count=400, params=trained.state.params)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)
    fresh = make_state(experiment, seed=5, token_count=400)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)


def test_stopped_and_resumed_without_its_source_it_equals_the_uninterrupted_one(
    source, warm, experiment_files, tmp_path, capsys
):
    arguments = starting_from(source, experiment_files, tmp_path / "run")
    run_until("step", 2, arguments)
    run_until("step", 7, arguments)
    hidden = source.rename(source.with_name("hidden"))
    try:
        assert main(arguments) == 0
        assert "resumed from step 4\n" in capsys.readouterr().out
        assert main(arguments) == 0
        assert ": finished, 12 steps" in capsys.readouterr().out
        assert_same_run(tmp_path / "run", warm)
        assert evaluate([f"--workdir={tmp_path / 'run'}"]) == 0
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        (tmp_path / "run" / "summary.json").unlink()
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"jaxformer: init_from {source}: no such folder\n"
    finally:
        hidden.rename(source)
    assert read_lineage(tmp_path / "run") == read_lineage(warm)


def test_the_same_weights_elsewhere_are_the_same_run_and_others_are_refused(
    source, warm, experiment_files, tmp_path, capsys
):
    shutil.copytree(source, tmp_path / "copy")
    before = paths(warm)
    assert main(starting_from(tmp_path / "copy" / "checkpoints" / "12", experiment_files, warm)) == 0
    assert ": finished, 12 steps" in capsys.readouterr().out
    for other, words in (
        (source / "checkpoints" / "8", f"run folder {warm} belongs to another configuration (init_from: "),
        (tmp_path / "gone", f"init_from {tmp_path / 'gone'}: no such folder"),
    ):
        assert main(starting_from(other, experiment_files, warm)) == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"jaxformer: {words}") and errors.count("\n") == 1
    assert main(command(experiment_files["best_fit"], warm)) == 2
    assert paths(warm) == before


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("", ["--model.depth=3"], "another model (model.depth 3 here, 2 there); give --model.depth=2\n"),
        (
            "",
            ["--model.norm=layernorm", "--model.width=32"],
            "model.norm layernorm here, rmsnorm there); give --model.width=16 --model.head_width=8 ",
        ),
        ("", ["--tokenizer.path=TOKENIZER"], "its tokenizer is not the one of tokenizer.path ("),
        ("checkpoints/5", [], "no checkpoint of step 5; there are [8, 12]"),
        ("checkpoints", [], "no config.json; give RUN, the folder of a run, RUN/checkpoints/STEP or a Hugging Face"),
        ("config.json", [], "no such folder"),
        ("checkpoints/\u00b2", [], "no such folder"),
        (
            "unfinished",
            [],
            "the run has not reached its last step, 12; name one that is saved, ",
        ),
        ("damaged", [], "no step can be used (12: "),
        ("damaged/checkpoints/8", [], "no step can be used (8: "),
    ],
)
def test_what_cannot_be_started_from_ends_in_one_line_and_writes_nothing(
    where, options, message, source, experiment_files, tokenizer_path, tmp_path, capsys
):
    if where == "unfinished":
        shutil.copytree(source, tmp_path / where, ignore=lambda folder, _: ["12"] if "points" in str(folder) else [])
    elif where.startswith("damaged"):
        shutil.copytree(source, tmp_path / "damaged")
        for path in (tmp_path / "damaged" / "checkpoints").glob("*/params/**/d/*"):
            path.write_bytes(path.read_bytes()[:-9])
        for path in (tmp_path / "damaged" / "checkpoints" / "8" / "record").rglob("*"):
            path.write_bytes(path.read_bytes()[:-9])
    path = source / where if (source / where).exists() or where.endswith("5") else tmp_path / where
    options = [option.replace("TOKENIZER", str(tokenizer_path)) for option in options]
    before = paths(tmp_path)
    assert main(starting_from(path, experiment_files, tmp_path / "run", *options)) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith(f"jaxformer: init_from {path}: ") and errors.count("\n") == 1, errors
    assert paths(tmp_path) == before


def test_weights_that_were_saved_on_other_devices_are_read_onto_those_here(source, experiment_files, tmp_path):
    elsewhere = shutil.copytree(source, tmp_path / "elsewhere")
    for path in elsewhere.glob("checkpoints/*/params/_sharding"):
        path.write_text(path.read_text().replace("cpu:0", "cuda:0"))
    assert "cuda:0" in (elsewhere / "checkpoints" / "12" / "params" / "_sharding").read_text()
    experiment = load_experiment(str(experiment_files["best_fit"]))
    read = load_params(open_weights(str(elsewhere)), experiment.model, None)
    jax.tree.map(np.testing.assert_array_equal, read, load_trained(source).state.params)
    assert {leaf.device for leaf in jax.tree.leaves(read)} == {jax.devices()[0]}


def test_other_rotations_are_reported_since_rows_may_grow(source, experiment_files, capsys):
    overrides = {"model.rope_base": "50000", "model.z_loss": "1e-4"}
    check_fits(load_experiment(str(experiment_files["best_fit"]), overrides), open_weights(str(source)))
    assert re.fullmatch(r"jaxformer: .*: model.rope_base 50000.0 here, 10000.0 there; .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "here", "there"),
    [
        ("norm_epsilon", "1e-05", "1e-06"),
        ("activation", "relu2", "gelu"),
        ("tied_embeddings", "False", "True"),
    ],
)
def test_another_model_is_refused_with_the_field_and_both_values(name, here, there, source, experiment_files):
    experiment = load_experiment(str(experiment_files["best_fit"]), {f"model.{name}": here})
    message = rf"another model \(model\.{name} {here} here, {there} there\); give --model\.{name}={there}$"
    with pytest.raises(UserError, match=message):
        check_fits(experiment, open_weights(str(source)))


def test_the_tokenizer_is_that_of_the_weights_where_none_is_named(source, experiment_files, tokenizer_path):
    experiment, initial = load_experiment(str(experiment_files["best_fit"])), open_weights(str(source))
    assert with_tokenizer(experiment, initial.folder).tokenizer.path == str(source / "tokenizer.model")
    given = load_experiment(str(experiment_files["best_fit"]), {"tokenizer.path": str(tokenizer_path)})
    assert with_tokenizer(given, initial.folder) == given
    with pytest.raises(UserError, match="its tokenizer is not the one"):
        check_fits(given, initial)


def test_the_tokenizer_of_an_export_stands_for_the_same_text_and_is_enough(source, experiment_files, tmp_path):
    for name, content in tokenizer_files(load_trained(source).tokenizer, row_length=32).items():
        (tmp_path / name).write_bytes(content)
    assert load_tokenizer(tmp_path).digest == load_trained(source).tokenizer.digest
    assert tokenizer_in(tmp_path) == tmp_path / "tokenizer.model"
    given = {"tokenizer.path": str(tmp_path / "tokenizer.json")}
    check_fits(load_experiment(str(experiment_files["best_fit"]), given), open_weights(str(source)))


def test_data_are_not_prepared_with_a_tokenizer_that_would_be_trained_anew(source, experiment_files):
    experiment = load_experiment(str(experiment_files["best_fit"]), {"init_from": str(source)})
    with pytest.raises(UserError, match=r"tokenizer\.path is empty, .*with_tokenizer\(experiment, folder\)"):
        prepare_data(experiment, seed=0)


@pytest.mark.parametrize("main", [plan, lambda options: main([*options[:-1], "--plan"])])
def test_a_plan_is_refused_as_the_run_would_be(main, source, experiment_files, capsys):
    arguments = [f"--experiment={experiment_files['best_fit']}", f"--init_from={source}", "--model.depth=3"]
    assert main([*arguments, "--on=H100"]) == 2
    assert capsys.readouterr() == (
        "",
        f"jaxformer: init_from {source}: another model (model.depth 3 here, 2 there); give --model.depth=2\n",
    )


def test_validation_that_fails_before_the_first_step_names_no_checkpoint(
    source, experiment_files, tmp_path, monkeypatch, capsys
):
    def fail(state, *_):
        raise RuntimeError(f"out of luck at {int(state.step)}")

    monkeypatch.setattr(jaxformer.loop, "validate", fail)
    assert main(starting_from(source, experiment_files, tmp_path / "run")) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "out of luck" in line]
    assert lines[0] == "jaxformer: validation at step 0 failed (RuntimeError: out of luck at 0)"
    assert lines[1].endswith(" --step=4`")


def test_preparing_takes_that_tokenizer_and_trains_none(source, experiment_files, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    assert prepare([f"--experiment={experiment_files['best_fit']}", f"--init_from={source}"]) == 0
    assert (tmp_path / "cache" / "shards").is_dir() and not (tmp_path / "cache" / "tokenizers").exists()


def export(source, folder, **options):
    """Writes a run as a folder of Hugging Face transformers; returns the folder."""
    trained = load_trained(source)
    folder.mkdir()
    params = flat_parameters(trained.state.params)
    write_model(folder, trained.experiment.model, params, trained.tokenizer, row_length=32, **options)
    return folder


@pytest.fixture
def exported(source, tmp_path):
    """The source as a folder of Hugging Face transformers."""
    return export(source, tmp_path / "exported")


def test_a_hugging_face_folder_of_the_same_weights_starts_the_same_run(
    source, warm, exported, experiment_files, capsys
):
    initial = open_weights(str(exported))
    assert initial.digest == open_weights(str(source)).digest, "the model type is nothing of the parameters"
    assert initial.record == {"path": str(exported), "model_type": "arcee", "params": initial.digest}
    assert main(starting_from(exported, experiment_files, warm)) == 0
    assert ": finished, 12 steps" in capsys.readouterr().out
    workdir = exported.parent / "run"
    run_until("step", 5, starting_from(exported, experiment_files, workdir))
    ours, theirs = read_metrics(workdir), read_metrics(warm)
    assert ours[0] == theirs[0]
    losses = [[line["train/loss"] for line in lines if "train/loss" in line] for lines in (ours, theirs)]
    assert len(losses[0]) > 1 and losses[0] == losses[1][: len(losses[0])]
    assert read_lineage(workdir) == initial.record


def test_rows_that_no_token_has_are_no_part_of_the_weights(source, experiment_files, tmp_path):
    """They are zeros in a run, and may be anything in a folder of others."""
    padded = export(source, tmp_path / "padded", keep_padding=True)
    tensors = load_file(padded / "model.safetensors")
    assert (
        tensors["model.embed_tokens.weight"].shape == (416, 16) and not tensors["model.embed_tokens.weight"][400:].any()
    )
    tensors["model.embed_tokens.weight"][400:] = 5
    save_file(tensors, padded / "model.safetensors")
    initial = open_weights(str(padded))
    assert initial.digest == open_weights(str(source)).digest
    for rows in ("400", "416"):
        experiment = load_experiment(str(experiment_files["best_fit"]), {"model.vocabulary_size": rows})
        check_fits(experiment, initial)
        found = flat_parameters(load_params(initial, experiment.model, None))
        expected = with_vocabulary(flat_parameters(load_trained(source).state.params), int(rows))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_folder_of_others_may_be_named_as_a_step_is(exported, tmp_path):
    (tmp_path / "hfx").mkdir()
    digest = open_weights(str(exported)).digest
    moved = shutil.copytree(exported, tmp_path / "hfx" / "checkpoints" / "500")
    assert open_weights(str(moved)).digest == digest


def test_tables_may_have_other_rows_than_those_of_a_run_and_of_its_export(source, exported, experiment_files):
    expected = flat_parameters(load_trained(source).state.params)
    for path in (source, exported):
        initial = open_weights(str(path))
        for rows in (400, 512):
            experiment = load_experiment(str(experiment_files["best_fit"]), {"model.vocabulary_size": str(rows)})
            check_fits(experiment, initial)
            found = flat_parameters(load_params(initial, experiment.model, None))
            jax.tree.map(np.testing.assert_array_equal, found, with_vocabulary(expected, rows))
        options = {"model.vocabulary_size": "384", "init_from": str(path)}
        smaller = load_experiment(str(experiment_files["best_fit"]), options)
        with pytest.raises(UserError, match=r"model\.vocabulary_size 384 here, 400 there"):
            check_fits(smaller, initial)


def with_fewer_rows(folder, rows=399):
    """Cuts the tables of a folder, as of a model to whose tokenizer ids were added and that was not resized."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "embed_tokens" in name or "lm_head" in name]:
        tensors[name] = tensors[name][:rows].copy()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_fewer_rows, "its tokenizer has 400 ids and its embedding 399 rows, so that"),
        (
            lambda folder: [file.unlink() for file in folder.glob("tokenizer.*")],
            "no tokenizer.model and no tokenizer.json, so that",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"), "incomplete, or no safetensors file"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
            "model_type = 'bert': not a model",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: unreadable (not an object)"),
    ],
)
def test_hugging_face_folder_that_lacks_something_is_refused_in_one_line(
    change, message, exported, experiment_files, tmp_path, capsys
):
    change(exported)
    before = paths(tmp_path)
    assert main(starting_from(exported, experiment_files, tmp_path / "run")) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith(f"jaxformer: init_from {exported}: ") and errors.count("\n") == 1
    assert errors.count(str(exported)) == 1
    assert paths(tmp_path) == before


def test_weights_that_changed_in_place_are_read_anew(exported):
    before = open_weights(str(exported)).digest
    tensors = load_file(exported / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, exported / "model.safetensors")
    assert open_weights(str(exported)).digest != before
