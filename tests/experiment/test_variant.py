"""One change at a time: what a variant declares is all in which it differs from its parent."""

import pytest
from variant_files import HEADER, promoted, variant

from jaxformer.config import UserError
from jaxformer.experiment.consequences import SolvedFeedForwardWidth, SolvedWidth, times
from jaxformer.experiment.experiment import science
from jaxformer.experiment.resolution import resolve
from jaxformer.flops import parameter_count

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def test_a_variant_is_its_parent_but_for_the_change(write):
    resolved = resolve(write("deep", variant("{'model.depth': 7}")))
    ours, theirs = science(resolved.experiment), science(resolved.parents[0].experiment)
    assert {path: ours[path] for path in ours if ours[path] != theirs[path]} == {"model.depth": 7}
    assert resolved.lineage.change == {"model.depth": (4, 7)} and not resolved.lineage.consequences
    assert (resolved.name, resolved.lineage.parents) == ("deep", ("root",))
    assert resolved.experiment.question == "Why?" and resolved.experiment.training.steps == 900


@pytest.mark.parametrize(
    ("change", "retune", "is_retuned"),
    [
        ("{'optimizer.schedule': 'wsd'}", "auto", True),
        ("{'training.rows_per_step': times(2)}", "auto", True),
        ("{'packing.row_length': times(2), 'training.rows_per_step': times(0.5)}", "auto", False),
        ("{'optimizer.learning_rate': times(2), 'optimizer.b2': 0.9}", "auto", False),
        ("{'model.qk_norm': True}", "auto", False),
        ("{'model.qk_norm': True}", "learning_rate", True),
        ("{'optimizer.schedule': 'wsd'}", "off", False),
    ],
)
def test_what_moves_the_best_learning_rate_is_retuned_unless_it_says_otherwise(write, change, retune, is_retuned):
    name = write("one", variant(change, retune=repr(retune), bundle="'one idea'"))
    assert resolve(name).is_retuned is is_retuned and not resolve("baseline").is_retuned


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            variant("{'model.depth': 7, 'model.qk_norm': True}"),
            "changes 2 fields .*model.qk_norm.*one thing at a time",
        ),
        (
            variant("{'optimizer.learning_rate': 1e-3}", retune="'learning_rate'"),
            "a change of optimizer.learning_rate is compared at its own rates: leave out retune",
        ),
        (variant("{'model.depth': 7}", retune="'learning_rte'"), "retune = 'learning_rte' is unknown"),
        (variant("{'model.dept': 7}"), "unknown key model.dept; did you mean model.depth?"),
        (variant("{'modle.depth': times(2)}"), "unknown key modle.depth; did you mean model.depth?"),
        (variant("{'model.depth': 4}"), "the change of model.depth changes nothing: root has 4"),
        (variant("{'model.depth': times(1)}"), "changes nothing"),
        (variant("{'model.depth': 7, 'model.qk_norm': False}", bundle="'both'"), "model.qk_norm changes nothing"),
        (variant("{'training.micro_batches': 2}"), "decides how a run is computed"),
        (variant("{}"), "must change something"),
        (variant("{'model.key_value_heads': 4}"), "changes nothing: root has 4"),
        (variant("{'model.feed_forward_width': 512}"), "changes nothing: root has 512"),
        (variant("{'optimizer.muon_momentum': 0.5}"), "ignores it"),
        (variant("{'optimizer.decay_share': 0.5}"), "ignores it"),
        (variant("['model.depth']"), "must be values by dotted path"),
        (variant("{3: 4}"), "must be values by dotted path"),
        (variant("{'model.depth': 7}", parent=None), "parent must be of type str, not None"),
        (variant("{'model.depth': 7}", parent=""), "must name its parent"),
        (variant("{'model.depth': 7}", consequences="SolvedFeedForwardWidth()"), "must be a tuple"),
        (variant("{'model.depth': 7}", consequences="(SolvedFeedForwardWidth,)"), "chosen, not solved"),
        (variant("{'model.depth': lambda _, parent: parent.model.dept}"), "the change of model.depth fails: Attribute"),
        (variant("{'model.depth': 7}", parent="deep@"), "must follow '@'"),
        (variant("{'model.depth': 'deep'}"), "model.depth must be of type int"),
        (variant("{'model.depth': times(0.3)}"), "0.3 times 4 is not a whole number"),
        (variant("{'model.depth': 7}", consequences="({'model.width': 64},)"), "chosen, not solved"),
        (variant("{'model': load_experiment('baseline').optimizer}"), "model must be a ModelConfig"),
        (variant("{'model.depth': 7, 'model': 3}"), "set as a whole and in parts"),
        (variant("{'model.depth': 7}", parent="rot"), "unknown experiment 'rot'"),
        (variant("{'model.depth': 7}", parent="wrong"), "it descends from itself"),
        (
            "Variant(parent='root', change={'model.depth': 7}, question='Why?', expected=(0.1, 0.1), source='x')",
            "must be an interval",
        ),
        (
            "Variant(parent='root', change={'model.depth': 7}, question='Why?', expected=(0,), source='x')",
            "expected must have 2 elements",
        ),
        (
            "Variant(parent='root', change={'model.depth': 7}, question=' ', expected=(0, 1), source='x')",
            "ask a question",
        ),
        ("Variant(parent='root', change={'model.depth': 7}, question='?', expected=(0, 1), source='')", "source"),
        ("Merge(parents=('root',), **ABOUT)", "two different parents"),
        (promoted("{'model.depth': 7}"), "model.depth is more than tuning"),
        (promoted("{'optimizer.b1': 0.9}"), "optimizer.b1 changes nothing"),
        (promoted(evidence="abc"), "evidence .abc. must be the SHA-256"),
        (promoted(first_seed=0), "first_seed"),
        (promoted(variant="root2"), "root2 stands alone"),
        (promoted(variant="swiglu@root"), "must be the name of a file"),
        (promoted(parent="rot"), "unknown experiment 'rot'"),
        (promoted(variant="wrong"), "it descends from itself"),
        ("Merge(parents=('root', 'root2'), **ABOUT)", "no ancestor in common"),
    ],
)
def test_what_is_not_one_declared_change_is_refused(write, text, message):
    write("root2", "load_experiment('baseline')")
    with pytest.raises(UserError, match=message) as refused:
        resolve(write("wrong", text))
    assert "\n" not in str(refused.value) and "wrong.py" in str(refused.value)


def test_a_section_that_hides_a_second_change_is_refused_unless_it_is_called_one_idea(write):
    model = "{'model': dataclasses.replace(load_experiment('root').model, depth=7, qk_norm=True)}".replace(
        "'root'", "ROOT"
    )
    root = write("root", "load_experiment('baseline')")
    text = variant(model.replace("ROOT", repr(root)))
    with pytest.raises(UserError, match=r"changes 2 fields \(model.depth, model.qk_norm\)"):
        resolve(write("hidden", text))
    resolved = resolve(write("told", text.replace("**ABOUT", "bundle='depth with its norm', **ABOUT")))
    assert set(resolved.lineage.change) == {"model.depth", "model.qk_norm"}
    assert resolved.lineage.bundle == "depth with its norm"


def test_a_consequence_that_sets_more_than_it_says_is_refused(write, tmp_path):
    (tmp_path / "sly.py").write_text(
        f"""{HEADER}
class Sly:
    paths = ("model.width",)
    def __call__(self, parent, child):
        return {{"model.width": 64, "optimizer.b1": 0.8}}
EXPERIMENT = {variant("{'model.depth': 7}", consequences="(Sly(),)")}
"""
    )
    with pytest.raises(UserError, match=r"differs from root by more than it declares: optimizer\.b1"):
        resolve(str(tmp_path / "sly.py"))


@pytest.mark.parametrize("depth", [3, 6, 12, 24, 42])
def test_depths_have_the_parameters_of_their_parent(depth):
    resolved = resolve(f"depth_{depth}")
    parent, child = resolved.parents[0].experiment.model, resolved.experiment.model
    assert abs(parameter_count(child) / parameter_count(parent) - 1) < 0.02
    assert child.depth == depth and child.K == parent.K
    assert set(resolved.lineage.consequences) <= {*SolvedWidth.paths, *SolvedFeedForwardWidth.paths}


def test_where_no_width_makes_up_for_a_change_it_is_refused(write):
    text = variant("{'model.depth': 400}", consequences="(SolvedFeedForwardWidth(),)")
    with pytest.raises(UserError, match="no feed-forward width gives the parent's 1,311,872 parameters; 8 gives"):
        resolve(write("endless", text))


def test_a_factor_applies_to_what_a_zero_stands_for(write):
    resolved = resolve(write("wide", variant("{'model.feed_forward_width': times(0.5)}")))
    assert resolved.experiment.model.F == 256


def test_times_keeps_whole_numbers_whole():
    assert times(0.5)(4, None) == 2 and isinstance(times(0.5)(4, None), int) and times(0.5)(3.0, None) == 1.5


@pytest.mark.parametrize(
    ("values", "licence"),
    [
        ({"corpus.path": "own/*.parquet"}, ""),
        ({"corpus.path": "own/*.parquet", "corpus.licence": "CC0-1.0"}, "CC0-1.0"),
        ({"corpus.tokens": "1000"}, "ODC-By 1.0"),
    ],
)
def test_another_source_does_not_keep_the_licence_of_the_one_before(write, values, licence):
    assert resolve("baseline_27m", values).experiment.corpus.licence == licence
    if len(values) == 1 and "corpus.path" in values:
        child = resolve(write("own", variant(repr(values), parent="baseline_27m")))
        assert child.experiment.corpus.licence == licence


def test_another_source_of_a_part_keeps_the_licences_of_the_other_parts():
    resolved = resolve("mixture_100m", {"corpus.parts.1.path": "own/*.jsonl"}).experiment
    assert [part.licence for part in resolved.corpus.parts] == ["ODC-By 1.0", ""]
