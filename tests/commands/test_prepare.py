import random
import re
import sys
from pathlib import Path

import pytest
from local_hub import LocalHub, dclm, fineweb_edu
from user import User

from jaxformer.commands.prepare import main
from jaxformer.config import UserError
from jaxformer.data.hub import parse_hub_url
from jaxformer.experiment.resolution import load_experiment, resolve
from jaxformer.run.inputs import prepare_data

pytestmark = pytest.mark.device_free


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def prepared(cache: Path) -> dict[str, int]:
    """Returns the files in a cache, with the times of their last change."""
    return {str(path): path.stat().st_mtime_ns for path in cache.rglob("*") if path.suffix not in (".lock", ".json")}


def test_what_the_command_prepares_is_what_a_run_of_the_experiment_reads(experiment_files, own_cache, capsys):
    path = str(experiment_files["mixture_in_micro_batches"])
    assert main([f"--experiment={path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["corpus_0", "corpus_1"]
    before = prepared(own_cache)
    assert before
    data = prepare_data(resolve(path, {}, parent="").experiment, seed=0)
    assert prepared(own_cache) == before
    tokens = [f"{shards.manifest.tokens['train']:,} tokens to train on" for shards in data.shards]
    assert [each in line for each, line in zip(tokens, lines, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus.kin=x"], "unknown key corpus.kin; did you mean corpus.kind?"),
        (["--beem=x"], "unknown argument '--beem=x'; did you mean --beam?"),
        (["--corpus.kind=text", "--corpus.path=nowhere"], "corpus.path nowhere: no such file"),
        (["--beam="], "pip install 'jaxformer[beam]'"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_status_2(own_cache, capsys, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    assert main(["--experiment=baseline", "--tokenizer.vocabulary_size=400", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("arguments", [[], ["--exp=baseline"], ["--experiment"]])
def test_without_an_experiment_it_is_one_line_and_exit_status_2(capsys, arguments):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--experiment" in line and "see `jaxformer prepare --help`" in line


def test_options_that_beam_does_not_know_are_refused_before_anything_is_tokenised():
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    from jaxformer.data.beam import pipeline_options

    with pytest.raises(UserError, match="no options of an Apache Beam pipeline"):
        pipeline_options(["--direct_num_workers=many"])


# The experiments at scale, as they are written.


def made_up(number: int, seed: int) -> list[str]:
    """Returns texts of so many different words that a tokenizer of 32,768 pieces can be trained on them."""
    words = random.Random(0)
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s")]
    lexicon = ["".join(words.choices(syllables, k=words.randint(2, 5))) for _ in range(24_000)]
    choices = random.Random(seed)
    return [" ".join(choices.choices(lexicon, k=choices.randint(20, 300))) for _ in range(number)]


@pytest.fixture(scope="module")
def large_hub():
    """The datasets of `baseline_27m` and `mixture_100m` at the commits that these name."""
    pytest.importorskip("huggingface_hub")
    with LocalHub() as hub:
        parts = (load_experiment("baseline_27m").corpus, load_experiment("mixture_100m").corpus.parts[1])
        for part, suffix, pack in zip(parts, (".parquet", ".jsonl.zst"), (fineweb_edu, dclm), strict=True):
            place = parse_hub_url(part.path, "corpus.path")
            folder = place.path.rpartition("/")[0]
            files = {f"{folder}/{i:03}{suffix}": pack(made_up(600, i + len(suffix))) for i in range(3)}
            hub.commit(place.repository, {**files, "README.md": b"no data"}, commit=place.revision)
        yield hub


@pytest.mark.slow
def test_the_experiments_at_scale_are_prepared_from_the_hub_and_then_need_it_no_more(large_hub, tmp_path):
    """The mixture, whose first part is the corpus of the others."""
    budgets = ["--corpus.parts.0.tokens=90_000", "--corpus.parts.1.tokens=60_000"]
    user = User(tmp_path, [], large_hub.environment)
    first = user.run("prepare", "--experiment=mixture_100m", *budgets)
    assert first.status == 0, first.err
    found = [int(each.replace(",", "")) for each in re.findall(r": ([\d,]+) tokens to train on", first.out)]
    wanted = [int(budget.partition("=")[2].replace("_", "")) for budget in budgets]
    assert [abs(tokens - want) < 2000 for tokens, want in zip(found, wanted, strict=True)] == [True] * len(budgets)
    files = [request.line for request in large_hub.requests if "/cdn/" in request.line]
    assert files and not any("README" in line for line in files)
    large_hub.behave()
    again = user.run("prepare", "--experiment=mixture_100m", *budgets)
    assert (again.status, again.out, large_hub.requests) == (0, first.out, [])
