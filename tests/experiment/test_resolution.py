"""From a name to an experiment: other parents, merges, overrides, and files of one name in two folders."""

import dataclasses
import json
import os

import pytest
from variant_files import promoted, variant

from jaxformer.ablation.study import Study, resolve_study
from jaxformer.config import UserError
from jaxformer.experiment.files import find_experiment, list_experiments
from jaxformer.experiment.resolution import resolve
from jaxformer.flops import parameter_count
from jaxformer.run.earlier_runs import check_earlier_runs
from jaxformer.run.identity import identify

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

READER = """
@dataclasses.dataclass(frozen=True)
class Logs(Reader):
    suffixes = (".log", ".md")


"""


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
    root = merge.common_ancestor.experiment.model
    assert abs(parameter_count(model) / parameter_count(root) - 1) < 0.02
    assert set(merge.lineage.change) == {"model.activation", "optimizer.learning_rate"}, "against the first parent"
    assert merge.lineage.parents == ("deep", "gated_fast") and merge.common_ancestor.name == "root"
    write("deeper", variant("{'model.depth': 9}"))
    with pytest.raises(UserError, match=r"deep and deeper both change model\.depth"):
        resolve(write("both", "Merge(parents=('deep', 'deeper'), **ABOUT)"))


def test_names_with_a_plus_between_them_are_joined_without_a_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(tmp_path)
    write("wide", "replace(load_experiment('baseline'), {'model.width': 256})")
    write("deep", variant("{'model.depth': 7}"))
    write("gated", variant("{'model.activation': 'swiglu'}"))
    write("both", "Merge(parents=('deep', 'gated'), **ABOUT)")
    joined, merge = resolve("deep+gated"), resolve("both")
    assert dataclasses.replace(joined.experiment, name="", question="") == dataclasses.replace(
        merge.experiment, name="", question=""
    )
    assert joined.name == "deep+gated" and joined.lineage.change == merge.lineage.change
    assert joined.lineage.parents == ("deep", "gated") and joined.lineage.expected == (-0.2, 0.2)
    asked = resolve("deep+gated@wide")
    assert asked == resolve("deep+gated", parent="wide") and asked.name == "deep+gated@wide"
    assert (asked.experiment.model.width, asked.experiment.model.depth) == (256, 7)
    write("deeper", variant("{'model.depth': 9}"))
    for name, message in {
        "deep+deeper": r"both change model\.depth",
        "deep+deep": "two different parents",
        "latent_attention+value_embeddings": r"both change model\.attention",
        "value_embeddings+latent_attention": r"both change model\.attention",
        "deep+": "unknown experiment ''",
        "deep+gate": "unknown experiment 'gate'; did you mean",
    }.items():
        with pytest.raises(UserError, match=message):
            resolve(name)


def test_a_parent_is_the_file_that_whoever_names_it_finds(write, tmp_path, monkeypatch):
    package = find_experiment("baseline").resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(tmp_path)
    write("baseline", f"replace(load_experiment({str(package)!r}), {{'model.width': 64}})")
    write("mine", variant("{'model.qk_norm': True}", parent="baseline"))
    write("next", promoted(variant="swiglu", parent="baseline"))
    own, other = resolve("swiglu"), resolve("swiglu@baseline")
    assert (own.name, own.experiment.model.width) == ("swiglu", 128), "beside its own file"
    assert (other.name, other.experiment.model.width) == ("swiglu@baseline", 64), "beside whoever names it"
    assert resolve("swiglu", parent="baseline") == other and resolve("next").judged == other
    assert resolve("mine@baseline").name == "mine", "its own parent makes it no other"
    with pytest.raises(UserError, match="swiglu, mine have no ancestor in common; files named baseline in two folders"):
        resolve(write("both", "Merge(parents=('swiglu', 'mine'), **ABOUT)"))

    study = Study(parent="baseline", variants=("swiglu", "mine"))
    assert [one.name for one in resolve_study(study)] == ["baseline", "swiglu@baseline", "mine"]
    write("later", variant("{'model.z_loss': 1e-4}", parent="swiglu"))
    with pytest.raises(UserError, match="later changes another baseline than the study's"):
        resolve_study(Study(parent="baseline", variants=("later@swiglu",)))


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
    with pytest.raises(UserError, match=r"deep has changed since .*deep/seed_0 was trained \(model.depth: 7 -> 8\)"):
        check_earlier_runs(runs, resolve(other))
    # The same value, of a parent that was another: no longer what was asked.
    write("root", "replace(load_experiment('baseline'), {'training.steps': 900, 'model.depth': 5})")
    write("deep", variant("{'model.depth': 7}"))
    with pytest.raises(UserError, match=r"deep has changed since .* \(.*4.*7.*5.*7.*"):
        check_earlier_runs(runs, resolve(path)._replace(parents=()))
    write("root", "replace(load_experiment('baseline'), {'training.steps': 901})")
    with pytest.raises(UserError, match=r"has changed since .* \(training.steps: 900 -> 901\)"):
        check_earlier_runs(runs, resolve(other))


@pytest.mark.parametrize("name", list_experiments())
def test_every_experiment_here_can_be_resolved(name):
    resolved = resolve(name)
    assert resolved.experiment.question
    fields = {".".join(path.split(".")[:2]) for path in resolved.lineage.change}  # A part of many fields is one.
    assert len(fields) <= 1 or resolved.lineage.bundle


def test_depths_are_found_for_parents_that_share_keys(write):
    resolved = resolve("depth_6", parent="grouped_query_attention")
    assert resolved.experiment.model.G == 2 and resolved.experiment.model.heads % 2 == 0


def test_two_parents_at_once_are_refused():
    with pytest.raises(UserError, match="has a parent in its name"):
        resolve("swiglu@muon", parent="laptop")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder in which some files are, and one in which the test runs."""
    for name in ("own.jsonl", "notes.md", "docs/a.txt", "docs/README.md", "code/a.py", "code/b.md", "both/a.txt",
                 "both/b.jsonl", "own/part.parquet", "own/README.md", "table.csv", "my [v1]/a.txt",
                 "project/requirements.txt", "project/a.py", "project/b/c.py", "mostly_code/a.txt",
                 "mostly_code/b.jsonl", "mostly_code/c.py", "mostly_code/d.py", "mostly_code/e.md"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("experiment", "path", "kind"),
    [
        ("baseline", "own.jsonl", "jsonl"),
        ("baseline", "elsewhere/OWN.JSONL.zst", "jsonl"),
        ("baseline", "notes.md", "text"),
        ("baseline", "docs", "text"),
        ("baseline", "code", "text"),
        ("baseline", "code/*", "text"),
        ("baseline", "project/*", "text"),
        ("baseline", "my [v1]", "text"),
        ("baseline", "own", "parquet"),
        ("baseline", "both/*.jsonl", "jsonl"),
        ("baseline", "hf://datasets/OWNER/NAME/*.parquet", "parquet"),
        ("baseline_27m", "notes.md", "text"),
        ("baseline_27m", "own", "parquet"),
        ("baseline_27m", "hf://datasets/OWNER/NAME", "parquet"),
        ("baseline_27m", "nowhere", "parquet"),
    ],
)
def test_a_path_brings_the_kind_of_its_files_with_it(files, experiment, path, kind):
    inferred = resolve(experiment, {"corpus.path": path})
    given = resolve(experiment, {"corpus.path": path, "corpus.kind": kind})
    assert inferred == given and inferred.experiment.corpus.kind == kind


def test_a_kind_that_is_given_decides_and_a_path_that_is_not_changes_none(files):
    values = {"corpus.path": "own.jsonl", "corpus.kind": "text"}
    assert resolve("baseline", values).experiment.corpus.kind == "text"
    kept = resolve("baseline_27m", {"training.steps": "7000"}).experiment.corpus
    assert kept == resolve("baseline_27m").experiment.corpus
    parts = resolve("mixture_100m", {"corpus.parts.0.path": "own.jsonl"}).experiment.corpus.parts
    assert [part.kind for part in parts] == ["jsonl", "jsonl"]


def test_a_reader_of_ones_own_keeps_what_it_reads(files, write):
    root = write("logs", "replace(load_experiment('baseline'), {'corpus.kind': Logs(), 'corpus.path': 'logs'})")
    with open(root) as file:
        text = file.read()
    with open(root, "w") as file:
        file.write("from jaxformer.experiment import Reader\n" + text.replace("EXPERIMENT =", READER + "EXPERIMENT ="))
    os.mkdir("logs")
    for path in ("logs", "other.log", "notes.md", "both"):
        assert repr(resolve(root, {"corpus.path": path}).experiment.corpus.kind) == "Logs()"
    assert resolve(root, {"corpus.path": "own.jsonl"}).experiment.corpus.kind == "jsonl"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("both", r"corpus\.path both: files of several kinds; set corpus\.kind to text or jsonl$"),
        (
            "project",
            r"several kinds, most of them \.py; set corpus\.kind to text, or .* glob such as project/\*\*/\*\.py$",
        ),
        ("mostly_code", r"kinds, most of them \.py; set corpus\.kind to text or jsonl, or corpus\.path to a glob"),
        ("table.csv", r"table\.csv: of no kind by its name; set corpus\.kind to text or jsonl or parquet or tfds$"),
        ("hf://datasets/OWNER/NAME", r"NAME: of no kind by its name; set corpus\.kind to text or"),
        ("nowhere", r"corpus\.path nowhere: no such file or folder.*; for a TFDS dataset set corpus\.kind=tfds$"),
    ],
)
def test_a_path_whose_kind_is_not_known_is_refused(files, path, message):
    with pytest.raises(UserError, match=message):
        resolve("baseline", {"corpus.path": path})


def test_a_run_can_be_named_and_asked_what_it_is_to_tell():
    plain, values = resolve("baseline"), {"model.width": "64", "name": "narrow", "question": "Is it enough?"}
    named = resolve("baseline", values)
    assert (named.experiment.name, named.experiment.question) == ("narrow", "Is it enough?")
    assert (named.lineage.experiment, list(named.lineage.overrides)) == ("baseline", ["model.width"])
    assert identify(named.experiment, 0) == identify(resolve("baseline", {"model.width": "64"}).experiment, 0)
    assert resolve("baseline", {"name": "baseline"}).experiment == plain.experiment


def test_the_question_of_a_run_on_another_corpus_is_what_was_set(files):
    plain = resolve("baseline").experiment.question
    assert resolve("baseline", {"model.width": "64"}).experiment.question == plain
    values = {"corpus.path": "own.jsonl", "model.width": "64"}
    other = resolve("baseline", values).experiment
    assert other.question == "baseline with model.width=64, corpus.kind=jsonl, corpus.path=own.jsonl"
    assert resolve("baseline", values | {"question": "Why?"}).experiment.question == "Why?"


@pytest.mark.parametrize("name", ["", "..", "a/b", "a~b", "a@b", "a b", "-a", "a\n"])
def test_a_name_that_no_folder_is_given_is_refused(name):
    with pytest.raises(UserError, match=r"^name '.*': a run folder is named after it; use letters, digits"):
        resolve("baseline", {"name": name})


@pytest.mark.parametrize("values", [{"name": "swiglu"}, {"name": "baseline", "model.width": "64"}])
def test_no_run_takes_the_name_of_an_experiment_that_it_is_not(values):
    with pytest.raises(UserError, match=f"name '{values['name']}' belongs to another experiment"):
        resolve("baseline", values)


def test_no_run_takes_the_name_of_its_own_file_wherever_that_lies_unless_it_is_that(write):
    path = write("mine", "load_experiment('baseline')")
    assert resolve(path, {"name": "mine"}).name == "mine"
    with pytest.raises(UserError, match="name 'mine' belongs to another experiment"):
        resolve(path, {"name": "mine", "model.width": "64"})
