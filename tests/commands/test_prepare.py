import sys
from pathlib import Path

import pytest

from jaxformer.commands.prepare import main
from jaxformer.config import UserError
from jaxformer.experiment.variant import resolve
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
        (["--beem=x"], "unknown argument '--beem=x'; did you mean beam?"),
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
    from jaxformer.data.shard_writer import pipeline_options

    with pytest.raises(UserError, match="no options of an Apache Beam pipeline"):
        pipeline_options(["--direct_num_workers=many"])
