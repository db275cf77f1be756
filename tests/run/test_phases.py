"""Runs in phases: resumed anywhere they end as if nothing had stopped them, and are counted by what they train on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_run import assert_same_run, command, run_until

from jaxformer.ablation import clock_measurement
from jaxformer.config import UserError, replace
from jaxformer.data.phases import Phase
from jaxformer.experiment.best_rate import moves_best_rate
from jaxformer.experiment.change import apply_change
from jaxformer.experiment.experiment import (
    spans_of,
    tokens_by_step,
    trained_tokens,
    training_flops,
)
from jaxformer.experiment.resolution import load_experiment
from jaxformer.experiment.variant import Variant
from jaxformer.flops import training_flops_per_token
from jaxformer.run.inputs import prepare_data
from jaxformer.step import compile_step
from jaxformer.train import main

pytestmark = [pytest.mark.usefixtures("compiled", "default_signals"), pytest.mark.device_free]

# A ramp of the batch, one of the row length, and another mixture: from steps 3, 4 and 8 of 12.
PHASES = (
    Phase(start=0.25, rows_per_step=8),
    Phase(start=1 / 3, row_length=64),
    Phase(start=2 / 3, weights=(0.0, 1.0)),
)


@pytest.fixture(scope="module")
def phased_file(experiment_files):
    """The file of the mixture's experiment, in phases."""
    path = experiment_files["mixture_in_micro_batches"]
    phased = path.with_name("phased.py")
    code = path.read_text().replace("micro_batches=2", f"micro_batches=2, phases={PHASES!r}")
    phased.write_text(code.replace("import (", "import (\n    Phase,"))
    return phased


def test_run_in_phases_resumes_exactly_within_a_phase_and_at_its_border(phased_file, tmp_path, capsys):
    every = ["--checkpoint.every_steps=5", "--evaluation.every_steps=8"]
    plain, stopped = ([*command(phased_file, tmp_path / name), *every] for name in ("a", "b"))
    assert main(plain) == 0
    printed = capsys.readouterr().out
    for line in (
        "training    12 steps in phases, 2,176 tokens in all; ",
        "            from step 4: 4 rows x 64 = 256 tokens, of the corpora 25%, 75% of the rows\n",
        "step 3/12  a phase begins: 8 rows x 32 = 256 tokens, of the corpora 25%, 75% of the rows\n",
        "step 8/12  a phase begins: 4 rows x 32 = 128 tokens, of the corpora 0%, 100% of the rows\n",
    ):
        assert line in printed
    run_until("step", 7, stopped)
    run_until("validation", 8, stopped)
    assert "resumed from step 5\n" in capsys.readouterr().out
    assert main(stopped) == 0
    assert "resumed from step 8\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "b", tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["tokens"] == 3 * 4 * 32 + 8 * 32 + 4 * 4 * 64 + 4 * 4 * 32 == 2176


def test_no_document_is_in_rows_of_two_lengths_and_each_corpus_is_planned_whole(phased_file):
    experiment = load_experiment(str(phased_file))
    data = prepare_data(experiment, seed=3)
    assert [*data.plans] == [32, 64]
    for corpus, short, long in zip(data.corpora, data.plans[32], data.plans[64], strict=True):
        documents = [np.unique(plan.documents) for plan in (short, long)]
        np.testing.assert_array_equal(np.sort(np.concatenate(documents)), corpus.documents)
        assert all(len(each) for each in documents)
    tokens = [[plan.lengths.sum() for plan in plans] for plans in data.plans.values()]
    rows = [[span.rows_by_corpus[i] * span.row_length for span in spans_of(experiment)] for i in range(2)]
    for corpus in range(2):  # Steps 4 to 8 have the long rows.
        expected = rows[corpus][2] / sum(rows[corpus])
        assert tokens[1][corpus] / (tokens[0][corpus] + tokens[1][corpus]) == pytest.approx(expected, abs=0.03)


def test_tokens_and_operations_are_those_of_the_phases(phased_file):
    experiment = load_experiment(str(phased_file))
    sizes = [128] * 3 + [256] * 1 + [256] * 4 + [128] * 4
    np.testing.assert_array_equal(tokens_by_step(experiment, 12), np.cumsum(sizes))
    assert [trained_tokens(experiment, step) for step in range(13)] == [0, *np.cumsum(sizes)]
    flops = {length: training_flops_per_token(experiment.model, length) for length in (32, 64)}
    expected = (128 * 7 + 256) * flops[32] + 1024 * flops[64]
    assert training_flops(experiment) == pytest.approx(expected, rel=1e-12)
    assert flops[64] > flops[32]


def test_the_times_of_a_run_in_phases_are_of_steps_from_all_of_it(phased_file, monkeypatch):
    experiment, taken = load_experiment(str(phased_file)), []

    def compile_counting(state):
        compiled = compile_step(state)
        lower = compiled.lower

        def counting(state, batch):
            shape, step = batch.tokens_BT.shape, lower(state, batch).compile()
            return SimpleNamespace(compile=lambda: lambda *both: (taken.append(shape), step(*both))[1])

        return SimpleNamespace(lower=counting)

    monkeypatch.setattr(clock_measurement, "compile_step", compile_counting)
    steps = clock_measurement.make_timed_steps(experiment, 3)
    steps.take(1)
    # Of 12 steps with 3, 1, 4 and 4 of a kind, 20 evenly.
    assert [taken.count(shape) for shape in ((4, 32), (8, 32), (4, 64))] == [5 + 7, 2, 6]
    assert steps.tokens == sum(rows * length for rows, length in taken)
    assert clock_measurement.clock_seconds([load_experiment("baseline"), experiment], 1.0) == 20 * 48


def changed(experiment, *phases):
    change = {"training.phases": phases}
    variant = Variant(
        parent="parent", question="Does it learn more?", change=change, expected=(-0.01, 0.0), source="none"
    )
    return apply_change(variant, experiment)[0]


def test_phases_are_one_change_which_moves_the_best_rate_only_with_the_tokens_of_a_step(experiment_files):
    parent = load_experiment(str(experiment_files["mixture_in_micro_batches"]))
    assert spans_of(changed(parent, *PHASES))[1].rows_per_step == 8
    as_long = changed(parent, Phase(start=0.5, rows_per_step=2, row_length=64, weights=(1.0, 1.0)))
    larger = changed(parent, Phase(start=0.5, rows_per_step=8))
    paths = ["training.phases.0.start"]
    assert [moves_best_rate(paths, parent, one) for one in (as_long, larger)] == [False, True]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"phases": (Phase(start=0.5, rows_per_step=3),)},
            r"micro_batches \(2\) must divide .*phases\.0\.rows_per_step",
        ),
        (
            {"phases": (Phase(start=0.5, row_length=64),), "learned": 32},
            r"positions \(32\) .*phases\.0\.row_length \(64\)",
        ),
        ({"phases": (Phase(start=0.5, weights=(1.0,)),)}, r"phases\.0 has 1 weights, .* the corpus has 2"),
        ({"phases": (Phase(start=0.5),)}, r"phases\.0 changes nothing"),
    ],
)
def test_phases_that_do_not_fit_the_run_are_refused(values, message, experiment_files):
    experiment = load_experiment(str(experiment_files["mixture_in_micro_batches"]))
    with pytest.raises(UserError, match=message):
        replace(
            experiment,
            {"training.phases": values["phases"], "model.learned_positions": values.get("learned", 0)},
        )


@pytest.mark.parametrize("fields", [{"start": 1.0}, {"start": -0.1}, {"start": 0.5, "row_length": 1}])
def test_phase_checks_itself(fields):
    with pytest.raises(UserError, match=r"training\.phases\.(start|row_length) \(.*\) must be"):
        Phase(**fields)
