"""A promoted variant is what was judged and what was tuned for it, and each change of its line can be left out."""

import pytest
from variant_files import promoted, variant

from jaxformer.config import UserError
from jaxformer.experiment.experiment import science
from jaxformer.experiment.promoted import kept_changes
from jaxformer.experiment.resolution import resolve

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


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
    write("joined", "Merge(parents=('qk_norm@first', 'wsd@second'), **ABOUT)")
    assert (resolve("joined").first_seed, resolve("joined").generation) == (2000, 2), "1000 to 1999 chose second"
    with pytest.raises(UserError, match="first was promoted with its own parent: it cannot be applied to second"):
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
        variant_name, _, tuned = name.partition(" tuned ")
        parent = f"gen{i - 1}" if i > 1 else "root"
        write(f"gen{i}", promoted(tuned, variant=variant_name, parent=parent, first_seed=1000 * i))


def test_a_change_is_left_out_and_the_others_follow_in_order(write, tmp_path, monkeypatch):
    chain(write, tmp_path, monkeypatch, "swiglu", "faster", "joined", "faster")
    root, kept = kept_changes(resolve("gen4"))
    assert [one.name for one in kept] == ["swiglu", "gen2", "wsd", "normed", "gen4"] and root.name == "root"
    assert [one.judged.parents[0].name for one in kept] == ["root", "gen1", "gen2", "gen2", "gen3"]

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
    found = resolve("gen5_without_wsd")
    assert found.lineage.change == {"optimizer.schedule": ("wsd", "cosine")} and not found.experiment.model.qk_norm

    write("gen4_without_wsd", variant("{'model.depth': 7}"))
    assert resolve("gen4_without_wsd").experiment.model.depth == 7, "a file of that name comes first"


def test_what_was_tuned_for_a_change_follows_it_and_is_left_out_with_it(write, tmp_path, monkeypatch):
    def learned(resolved):
        optimizer = resolved.experiment.optimizer
        return resolved.experiment.model.activation, optimizer.learning_rate, optimizer.b2, optimizer.schedule

    slower = "tuned {'optimizer.learning_rate': 0.002}"
    chain(write, tmp_path, monkeypatch, f"swiglu {slower}", "faster", "joined tuned {'optimizer.b2': 0.9}")
    whole, without = resolve("gen2"), resolve("gen2_without_swiglu")
    b2 = whole.experiment.optimizer.b2
    assert (learned(whole), learned(without)) == (("swiglu", 0.004, b2, "cosine"), ("gelu", 0.008, b2, "cosine"))
    assert without.lineage.change.keys() == {"model.activation", "optimizer.learning_rate"}
    # A merge was tuned as a whole: what is left of it keeps that, until nothing is.
    without = resolve("gen3_without_wsd")
    assert learned(without) == ("swiglu", 0.004, 0.9, "cosine")
    assert without.lineage.bundle == "without wsd; optimizer.b2 as tuned for all that gen3 joins"
    write("gen4", promoted(variant="gen3_without_wsd", parent="gen3", first_seed=4000))
    without = resolve("gen4_without_normed")
    assert learned(without) == ("swiglu", 0.004, b2, "cosine") and without.lineage.bundle == "without normed"


@pytest.mark.parametrize(
    ("change", "variant", "message"),
    [
        (
            "{'optimizer.b1': 0.8}",
            "gen1_without_wsd",
            "gen1_without_wsd leaves out a change: nothing is tuned for that",
        ),
        ("", "gen1", "gen1 is promoted already"),
    ],
)
def test_what_cannot_be_promoted_is_refused(write, tmp_path, monkeypatch, change, variant, message):
    chain(write, tmp_path, monkeypatch, "wsd")
    write("next", promoted(change, variant=variant, parent="gen1" if change else "root"))
    with pytest.raises(UserError, match=message):
        resolve("next")


@pytest.mark.parametrize(
    ("names", "left_out", "message"),
    [
        (("wsd", "share"), "wsd", "wsd cannot be left out of gen2, since share needs it: .* ignores it"),
        (("faster", "fixed"), "faster", "gen2 is the same without faster: a later change, or"),
        (("wsd", "faster"), "muon", "gen2 keeps wsd, faster, but not muon"),
        (("wsd", "faster"), "wsd@root", "it cannot be applied to root"),
    ],
)
def test_what_cannot_be_left_out_is_refused(write, tmp_path, monkeypatch, names, left_out, message):
    chain(write, tmp_path, monkeypatch, *names)
    with pytest.raises(UserError, match=message):
        resolve(f"gen2_without_{left_out}")
    with pytest.raises(UserError, match="root is not a promoted variant"):
        resolve("root_without_wsd")
