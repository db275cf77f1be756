"""One change at a time: what a variant declares is all in which it differs from its parent."""

import dataclasses
import json

import pytest

from jaxformer.config import UserError
from jaxformer.experiment.consequences import SolvedFeedForwardWidth, SolvedWidth, times
from jaxformer.experiment.experiment import science
from jaxformer.experiment.files import list_experiments
from jaxformer.experiment.variant import common_ancestor, kept_changes, resolve
from jaxformer.flops import parameter_count
from jaxformer.run.earlier_runs import check_earlier_runs
from jaxformer.run.identity import identify

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

HEADER = """
import dataclasses
from jaxformer.config import replace
from jaxformer.experiment.consequences import SolvedFeedForwardWidth, times
from jaxformer.experiment.variant import Merge, Promoted, Variant, load_experiment
ABOUT = dict(question="Why?", expected=(-0.1, 0.1), source="a test")
"""


@pytest.fixture
def write(tmp_path):
    """A function (name, expression) -> the path of an experiment file beside the others."""

    def write(name, expression):
        path = tmp_path / f"{name}.py"
        path.write_text(f"{HEADER}EXPERIMENT = {expression}\n")
        return str(path)

    write("root", "replace(load_experiment('baseline'), {'training.steps': 900})")
    return write


def variant(change, parent="root", **others):
    more = "".join(f", {name}={value}" for name, value in others.items())
    return f"Variant(parent={parent!r}, change={change}{more}, **ABOUT)"


def promoted(change=None, variant="swiglu", parent="root", evidence="0" * 64, first_seed=1000):
    return (
        f"Promoted(variant={variant!r}, parent={parent!r}, change={change or '{}'}, evidence={evidence!r}, "
        f"verdict='KEEP: -0.03', first_seed={first_seed})"
    )


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
            "changes 2 fields .*model.qk_norm.*one question at a time",
        ),
        (
            variant("{'optimizer.learning_rate': 1e-3}", retune="'learning_rate'"),
            "a change of optimizer.learning_rate is compared at the rates that it names: leave out retune",
        ),
        (variant("{'model.depth': 7}", retune="'learning_rte'"), "retune = 'learning_rte' is unknown"),
        (variant("{'model.dept': 7}"), "unknown key model.dept; did you mean model.depth?"),
        (variant("{'modle.depth': times(2)}"), "unknown key modle; did you mean model?"),
        (variant("{'model.depth': 4}"), "the change of model.depth changes nothing: root has 4"),
        (variant("{'model.depth': times(1)}"), "changes nothing"),
        (variant("{'model.depth': 7, 'model.qk_norm': False}", bundle="'both'"), "model.qk_norm changes nothing"),
        (variant("{'training.micro_batches': 2}"), "decides how a run is computed"),
        (variant("{}"), "must change something"),
        (variant("{'model.key_value_heads': 4}"), "changes nothing: root has 4"),
        (variant("{'model.feed_forward_width': 512}"), "changes nothing: root has 512"),
        (variant("{'optimizer.muon_momentum': 0.5}"), "takes no notice of it"),
        (variant("{'optimizer.decay_share': 0.5}"), "takes no notice of it"),
        (variant("['model.depth']"), "must be values by dotted path"),
        (variant("{3: 4}"), "must be values by dotted path"),
        (variant("{'model.depth': 7}", parent=None), "parent must be of type str, not None"),
        (variant("{'model.depth': 7}", parent=""), "must name its parent"),
        (variant("{'model.depth': 7}", consequences="SolvedFeedForwardWidth()"), "must be a tuple"),
        (variant("{'model.depth': 7}", consequences="(SolvedFeedForwardWidth,)"), "chosen, not solved"),
        (variant("{'model.depth': lambda _, parent: parent.model.dept}"), "the change of model.depth fails: Attribute"),
        (variant("{'model.depth': 7}", parent="deep@"), "must follow '@'"),
        (variant("{'model.depth': 'deep'}"), "model.depth must be of type int"),
        (variant("{'model.depth': times(0.3)}"), "0.3 times 4 is no whole number"),
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
        (promoted("{'model.depth': 7}"), "model.depth is more than was tuned"),
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


def test_the_same_question_is_asked_of_another_parent(write):
    write("wide", "replace(load_experiment('baseline'), {'model.width': 256})")
    path = write("gated", variant("{'model.activation': 'swiglu'}", consequences="(SolvedFeedForwardWidth(),)"))
    ours, theirs = resolve(path), resolve(path, parent="wide")
    assert (ours.name, theirs.name) == ("gated", "gated@wide") and theirs.lineage.parents == ("wide",)
    assert ours.experiment.model.F == 344 and theirs.experiment.model.F == 680
    assert resolve(path, parent="root") == ours, "its own parent makes it no other"
    with pytest.raises(UserError, match="root stands alone"):
        resolve(write("root", "load_experiment('baseline')"), parent="wide")


def test_a_variant_of_a_variant_goes_on_from_it(write, tmp_path, monkeypatch):
    write("wide", "replace(load_experiment('baseline'), {'model.width': 256})")
    write("deep", variant("{'model.depth': times(2)}"))
    resolved = resolve(write("deep_fast", variant("{'optimizer.learning_rate': times(2)}", parent="deep")))
    assert resolved.experiment.model.depth == 8 and resolved.lineage.change == {"optimizer.learning_rate": (4e-3, 8e-3)}
    assert [resolved.parents[0].name, resolved.parents[0].parents[0].name] == ["deep", "root"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(tmp_path)
    asked = resolve("deep_fast@deep@wide")
    assert (asked.experiment.model.depth, asked.experiment.model.width, asked.name) == (8, 256, "deep_fast@deep@wide")


def test_a_merge_joins_what_its_parents_changed(write):
    write("deep", variant("{'model.depth': 7}", consequences="(SolvedFeedForwardWidth(),)"))
    write("gated", variant("{'model.activation': 'swiglu'}", consequences="(SolvedFeedForwardWidth(),)"))
    write("gated_fast", variant("{'optimizer.learning_rate': times(2)}", parent="gated"))
    merge = resolve(write("all", "Merge(parents=('deep', 'gated_fast'), **ABOUT)"))
    model = merge.experiment.model
    assert (model.depth, model.activation, merge.experiment.optimizer.learning_rate) == (7, "swiglu", 8e-3)
    root = common_ancestor(merge).experiment.model
    assert abs(parameter_count(model) / parameter_count(root) - 1) < 0.02
    assert set(merge.lineage.change) == {"model.activation", "optimizer.learning_rate"}, "against the first parent"
    assert merge.lineage.parents == ("deep", "gated_fast") and common_ancestor(merge).name == "root"
    write("deeper", variant("{'model.depth': 9}"))
    with pytest.raises(UserError, match=r"deep and deeper both change model\.depth"):
        resolve(write("both", "Merge(parents=('deep', 'deeper'), **ABOUT)"))


def test_a_promoted_variant_is_the_variant_of_its_parent_and_what_was_tuned_for_it(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(tmp_path)
    write("again", variant("{'optimizer.learning_rate': times(2)}"))
    write("first", promoted("{'optimizer.learning_rate': 0.002}"))
    write("second", promoted(variant="again", parent="first", first_seed=2000))
    found, swiglu = resolve("first"), resolve("swiglu", parent="root")
    expected = science(swiglu.experiment) | {"optimizer.learning_rate": 0.002}
    assert science(found.experiment) == expected and found.lineage.parents == ("root",) and found.name == "first"
    tuned = {"optimizer.learning_rate": (0.004, 0.002)}
    assert found.lineage.change == {**swiglu.lineage.change, **tuned}
    assert found.lineage.consequences == swiglu.lineage.consequences and found.lineage.evidence == "0" * 64
    assert (found.lineage.expected, found.lineage.source) == (swiglu.lineage.expected, swiglu.lineage.source)

    # What was kept is changed again, by the same change too; and seeds begin where no run chose it.
    later = resolve("again@second")
    assert (later.name, later.experiment.optimizer.learning_rate) == ("again@second", 0.008)
    names = ("root", "first", "again@first", "second", "again@second")
    assert [resolve(name).first_seed for name in names] == [0, 1000, 1000, 2000, 2000]
    write("joined", "Merge(parents=('again@first', 'qk_norm@first'), **ABOUT)")
    assert resolve("joined").experiment.model.activation == "swiglu" and resolve("joined").first_seed == 1000
    with pytest.raises(UserError, match="first was promoted with its own parent: it cannot be asked of second"):
        resolve("first", parent="second")
    write("root", "replace(load_experiment('baseline'), {'model.activation': 'swiglu'})")
    with pytest.raises(UserError, match=r"swiglu\.py: the change of model\.activation changes nothing: root has"):
        resolve("second")


def chain(write, folder, monkeypatch, *names):
    """Writes variants of these names and changes, and promotes them one after another, as gen1, gen2 and so on."""
    monkeypatch.chdir(folder)
    (folder / "experiments").symlink_to(folder)
    changes = {
        "wsd": "{'optimizer.schedule': 'wsd'}",
        "faster": "{'optimizer.learning_rate': times(2)}",
        "fixed": "{'optimizer.learning_rate': 0.02}",
        "share": "{'optimizer.decay_share': 0.3}",
        "share_half": "{'optimizer.decay_share': 0.5}",
        "normed": "{'model.qk_norm': True}",
    }
    for name, change in changes.items():
        write(name, variant(change, parent="wsd" if name.startswith("share") else "root"))
    write("joined", "Merge(parents=('wsd', 'normed'), **ABOUT)")
    for i, name in enumerate(names, 1):
        parent = f"gen{i - 1}" if i > 1 else "root"
        write(f"gen{i}", promoted(variant=name, parent=parent, first_seed=1000 * i))


def test_a_change_is_left_out_and_the_others_follow_in_order(write, tmp_path, monkeypatch):
    chain(write, tmp_path, monkeypatch, "swiglu", "faster", "joined", "faster")
    root, kept = kept_changes(resolve("gen4"))
    assert [one.name for one in kept] == ["swiglu", "gen2", "wsd", "normed", "gen4"] and root.name == "root"
    assert [one.parent for one in kept] == ["root", "gen1", "gen2", "gen2", "gen3"]

    # What follows from a change goes with it.
    found = resolve("gen4_without_swiglu")
    expected = {"optimizer.learning_rate": 4 * 4e-3, "optimizer.schedule": "wsd", "model.qk_norm": True}
    assert science(found.experiment) == science(root.experiment) | expected
    assert found.lineage.change == {"model.activation": ("swiglu", "gelu")}
    assert found.lineage.consequences.keys() == {"model.feed_forward_width"}
    assert (found.name, found.lineage.parents, found.first_seed) == ("gen4_without_swiglu", ("gen4",), 4000)
    assert (found.without, found.lineage.bundle) == ("swiglu", "without swiglu")
    assert resolve("gen4_without_gen2").experiment.optimizer.learning_rate == 2 * 4e-3
    assert resolve("gen4_without_wsd").lineage.change == {"optimizer.schedule": ("wsd", "cosine")}
    assert resolve("gen3_without_wsd").lineage.expected == (-0.1, 0.1)

    # What was left out and promoted is kept no more.
    write("gen5", promoted(variant="gen4_without_normed", parent="gen4", first_seed=5000))
    root, kept = kept_changes(resolve("gen5"))
    assert [one.name for one in kept] == ["swiglu", "gen2", "wsd", "gen4"]
    assert resolve("gen5_without_wsd").lineage.change == {"optimizer.schedule": ("wsd", "cosine")}
    assert not resolve("gen5_without_wsd").experiment.model.qk_norm

    write("gen4_without_wsd", variant("{'model.depth': 7}"))
    assert resolve("gen4_without_wsd").experiment.model.depth == 7, "a file of that name comes first"


@pytest.mark.parametrize(
    ("names", "left_out", "message"),
    [
        (("wsd", "share"), "wsd", "gen2 cannot be without wsd, since share needs it: .* takes no notice of it"),
        (("faster", "fixed"), "faster", "gen2 is the same without faster: a later change replaced it"),
        (("wsd", "faster"), "muon", "gen2 keeps wsd, faster, and no muon"),
        (("wsd", "faster"), "wsd@root", "it cannot be asked of root"),
    ],
)
def test_what_cannot_be_left_out_is_refused(write, tmp_path, monkeypatch, names, left_out, message):
    chain(write, tmp_path, monkeypatch, *names)
    with pytest.raises(UserError, match=message):
        resolve(f"gen2_without_{left_out}")
    with pytest.raises(UserError, match="root is not a promoted variant"):
        resolve("root_without_wsd")
    write("whole", promoted("{'optimizer.learning_rate': 0.003}", variant="joined", first_seed=1000))
    with pytest.raises(UserError, match="whole was tuned as a whole: its changes cannot be told apart"):
        resolve("whole_without_wsd")


def test_overrides_of_science_make_a_variant_ad_hoc(write):
    path = write("deep", variant("{'model.depth': 7}"))
    ad_hoc = resolve(path, {"model.width": "64"})
    assert ad_hoc.name.startswith("deep~") and ad_hoc.lineage.overrides == {"model.width": (128, 64)}
    assert not resolve(path, {"training.log_every_steps": "3"}).lineage.overrides


def record(runs, resolved, seed=0):
    folder = runs / resolved.name / f"seed_{seed}"
    folder.mkdir(parents=True)
    record = {"identity": identify(resolved.experiment, seed), "lineage": dataclasses.asdict(resolved.lineage)}
    (folder / "config.json").write_text(json.dumps(record))


def test_a_variant_of_a_variant_whose_parent_moved_since_it_was_trained_is_refused(write, tmp_path):
    runs = tmp_path / "runs"
    path = write("deep", variant("{'model.depth': 7}"))
    other = write("deep_fast", variant("{'optimizer.learning_rate': times(2)}", parent="deep"))
    for resolved in (resolve(path), resolve(path).parents[0]):
        record(runs, resolved)
    check_earlier_runs(runs, resolve(other))
    write("deep", variant("{'model.depth': 8}"))
    with pytest.raises(UserError, match=r"deep has moved since .*deep/seed_0 was trained \(model.depth: 7 -> 8\)"):
        check_earlier_runs(runs, resolve(other))
    # The same value, of a parent that was another: no longer what was asked.
    write("root", "replace(load_experiment('baseline'), {'training.steps': 900, 'model.depth': 5})")
    write("deep", variant("{'model.depth': 7}"))
    with pytest.raises(UserError, match=r"deep has moved since .* \(.*4.*7.*5.*7.*"):
        check_earlier_runs(runs, resolve(path)._replace(parents=()))
    write("root", "replace(load_experiment('baseline'), {'training.steps': 901})")
    with pytest.raises(UserError, match=r"has moved since .* \(training.steps: 900 -> 901\)"):
        check_earlier_runs(runs, resolve(other))


@pytest.mark.parametrize("name", list_experiments())
def test_every_experiment_here_can_be_resolved(name):
    resolved = resolve(name)
    assert resolved.experiment.question
    assert len(resolved.lineage.change) <= 1 or resolved.lineage.bundle


def test_a_factor_applies_to_what_a_zero_stands_for(write):
    resolved = resolve(write("wide", variant("{'model.feed_forward_width': times(0.5)}")))
    assert resolved.experiment.model.F == 256


def test_depths_are_found_for_parents_that_share_keys(write):
    resolved = resolve("depth_6", parent="grouped_query_attention")
    assert resolved.experiment.model.G == 2 and resolved.experiment.model.heads % 2 == 0


def test_two_parents_at_once_are_refused():
    with pytest.raises(UserError, match="has a parent in its name"):
        resolve("swiglu@muon", parent="laptop")


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
