"""`jaxformer generate` prints a prompt and what follows, for one prompt or for each line of its input."""

import io
import signal
import sys

import pytest

import jaxformer.commands.generate as module
from jaxformer.commands.generate import main
from jaxformer.evaluation.generate import encode_text, generate_texts
from jaxformer.evaluation.sampling import Sampling
from jaxformer.run.trained import Trained, load_trained

pytestmark = [pytest.mark.usefixtures("compiled", "default_signals"), pytest.mark.device_free]


@pytest.fixture
def generate(uninterrupted, capsys):
    """A function that runs the command on the folder of a run, and returns its status."""
    run = uninterrupted("best_fit")
    capsys.readouterr()  # What its training printed.
    return lambda *arguments: main([f"--workdir={run}", "--tokens=20", *arguments])


@pytest.fixture
def give(monkeypatch):
    """A function that gives bytes as standard input, which is no terminal."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


class Closed(io.StringIO):
    """A stream that nobody reads beyond its first characters."""

    def __init__(self, limit=5):
        super().__init__()
        self.limit = limit

    def write(self, text):
        if self.tell() >= self.limit:
            raise BrokenPipeError
        return super().write(text)


def test_prompt_is_printed_with_what_follows_it(generate, give, uninterrupted, capsys):
    trained = load_trained(uninterrupted("best_fit"))
    sampling, prompt = Sampling(tokens=20, temperature=0.9, top_p=0.95, seed=4), encode_text(trained.tokenizer, "ba du")
    texts = generate_texts(trained.model, trained.tokenizer, [prompt] * 2, sampling)
    assert trained.generate("ba du", sampling) == texts[0] != texts[1]
    options = ("--temperature=0.9", "--top_p=0.95", "--seed=4")
    assert generate("--prompt=ba du", *options) == 0
    assert capsys.readouterr() == (f"ba du{texts[0]}\n", "")
    assert generate("--prompt=ba du", *options, "--count=2") == 0
    printed = f"--- 1 of 2 ---\nba du{texts[0]}\n--- 2 of 2 ---\nba du{texts[1]}\n"
    assert capsys.readouterr() == (printed, "")
    give(b"ba\ndu\n")
    assert generate("--prompt=-") == 0
    assert capsys.readouterr().out == "ba\ndu\n" + trained.generate("ba\ndu\n", Sampling(tokens=20)) + "\n"


def test_many_texts_are_printed_batch_by_batch_and_are_those_of_one_batch(generate, monkeypatch, capsys):
    assert generate("--prompt=ba du", "--count=5") == 0
    at_once = capsys.readouterr().out
    assert at_once.count("--- ") == 5
    monkeypatch.setattr(module, "_BATCH_TEXTS", 2)
    assert generate("--prompt=ba du", "--count=5") == 0
    assert capsys.readouterr().out == at_once
    monkeypatch.setattr(sys, "stdout", out := Closed(limit=at_once.index("--- 3")))
    assert generate("--prompt=ba du", "--count=1000000") == 0
    assert out.getvalue().count(" of 1000000 ---\n") == 2


def test_after_the_largest_seed_comes_0(generate, give, capsys):
    give(b"ba\nba\n")
    assert generate("--seed=4294967295") == 0
    second = capsys.readouterr().out.partition("\n\n")[2]
    assert generate("--seed=0", "--prompt=ba") == 0
    assert capsys.readouterr().out == second


def test_length_is_noted_once_with_the_first_prompt_that_is_too_long(generate, give, capsys):
    give(f"ba\n{'ba ' * 40}\n{'du ' * 40}\n".encode())
    assert generate("--tokens=2") == 0
    assert capsys.readouterr().err.count("trained on rows of 32 tokens") == 1


def test_each_line_of_the_input_is_a_prompt_with_a_seed_of_its_own(generate, give, uninterrupted, monkeypatch, capsys):
    trained = load_trained(uninterrupted("best_fit"))
    give("ba \r\n\nda é\nba ".encode())
    assert generate() == 0
    prompts = enumerate(["ba ", "da é", "ba "])
    texts = [f"{prompt}{trained.generate(prompt, Sampling(tokens=20, seed=seed))}\n" for seed, prompt in prompts]
    assert capsys.readouterr() == ("\n".join(texts), "")
    for stdin in (io.StringIO(), None):  # Closed, for a command that a daemon starts.
        monkeypatch.setattr(sys, "stdin", stdin)
        assert generate() == 0
        assert capsys.readouterr() == ("", "")


def test_on_a_terminal_ctrl_c_stops_a_text_or_drops_a_line_and_a_refused_prompt_is_asked_for_again(
    generate, monkeypatch, capsys
):
    def stream(self, prompt, sampling):
        encode_text(self.tokenizer, prompt)

        def write():
            yield f" and {sampling.seed}"
            if prompt == "stop":
                signal.raise_signal(signal.SIGINT)
            yield " more"

        return write()

    def read(asked):
        assert asked == "\n> "
        if not lines:
            raise EOFError
        line = lines.pop(0)
        if line == "dropped":
            signal.raise_signal(signal.SIGINT)
        return line

    lines = ["one", "", "stop", "dropped", "caf\udce9", "two"]
    monkeypatch.setattr(module, "is_terminal", lambda stream: True)
    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(Trained, "stream", stream)
    assert generate() == 0
    printed, errors = capsys.readouterr()
    assert printed == "one and 0 more\nstop and 1\ntwo and 3 more\n"
    assert "Ctrl-D ends" in errors and "jaxformer: the text is not UTF-8\n" in errors
    lines[:] = ["caf\udce9", "two"]
    assert generate() == 0
    assert capsys.readouterr().out == "two and 1 more\n"


def test_reader_that_has_enough_ends_it_in_silence(generate, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", out := Closed())
    assert generate("--prompt=ba du") == 0
    assert out.getvalue() == "ba du" and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--temperature=-1", "temperature (-1.0) must be 0, for the likeliest token, or between 0.001 and 1000"),
        ("--top_k=-1", "top_k (-1) must be at least 0 and below 2**31"),
        ("--top_k=401", "top_k (401) must be at most the 400 tokens there are"),
        ("--top_p=nan", "top_p (nan) must be finite"),
        ("--tokens=0", "tokens (0) must be at least 1 and at most 2**17"),
        ("--tokens=many", "tokens must be a whole number, not 'many'"),
        ("--count=0", "count (0) must be at least 1 and at most 1,000,000"),
        ("--count=1000001", "count (1000001) must be at least 1 and at most 1,000,000"),
        ("--seed=-1", "seed (-1) must be at least 0 and below 2**32"),
        ("--prompt=caf\udce9", r"argument '--prompt=caf\udce9' is not UTF-8"),
    ],
)
def test_argument_that_means_nothing_is_one_line(generate, argument, line, capsys):
    assert generate("--prompt=ba", argument) == 2
    assert capsys.readouterr() == ("", f"jaxformer: {line}\n")


def test_input_that_is_not_utf_8_is_one_line(generate, give, capsys):
    give(b"caf\xe9\n")
    assert generate() == 2
    assert capsys.readouterr() == ("", "jaxformer: the text is not UTF-8\n")


def test_text_longer_than_the_rows_of_training_is_noted(generate, capsys):
    assert generate(f"--prompt={'ba ' * 40}") == 0
    printed, errors = capsys.readouterr()
    assert printed.startswith("ba " * 40) and errors.count("\n") == 1
    assert errors.startswith("jaxformer: trained on rows of 32 tokens; a text of ")
