"""What all tests share: strict broadcasting, a cache of their own, and one small tokenizer."""

import functools
import gc
import itertools
import json
import os
import random
import signal
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
import quick_xla
import tiny_run
from jax.experimental.compilation_cache import compilation_cache

import jaxformer.experiment.experiment
from jaxformer.data.packing import Batch
from jaxformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from jaxformer.host.lock import hold
from jaxformer.host.signals import SIGNALS
from jaxformer.optimizer import make_optimizer
from jaxformer.train import main

jax.config.update("jax_numpy_rank_promotion", "raise")

# A GPU's kernels are tested as they are used, and the runs of `.ci/run` from the wheel are compiled as users' are.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("XLA_FLAGS", quick_xla.FLAGS)

# Until all tests are collected, little becomes garbage; after that, what they and the imports left is not looked
# through each time.
gc.disable()

hypothesis.settings.register_profile("jaxformer", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxformer")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Returns one process more than cores, since tests wait for others; up to eight: each takes a GB of memory."""
    return min(1 + (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1), 8)


_HERE = Path(__file__).parent

# The files that take longest, without and with `-m slow`: a process is given whole files.
_LONGEST = (
    "docs/test_blocks.py",
    "test_foreign_faults.py",
    "devices/test_mesh.py",
    "parts/test_parts.py",
    "run/test_resume.py",
    "test_step.py",
    "tools/test_on_gpu.py",
    "commands/test_killed_ladder.py",
    "checkpoint/test_train_state.py",
    "run/test_full_disk.py",
)


def pytest_collection_modifyitems(items):
    """Begins with the longest files, so that none of them is left for one process when the others are done."""
    ranks = {_HERE / name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish():
    """Looks for garbage from now on, among what is new."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all processes of a test session share: what is expensive is made there once, under a lock."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(shared):
    """A cache that lasts as long as the tests; the user's own is never touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(shared / "cache"))
        yield shared / "cache"


@pytest.fixture
def default_signals():
    """Sets what SIGINT, SIGTERM and SIGHUP do by default, here and in what is started: a shell's background ignores."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture(scope="session")
def make_texts():
    """A function (number, seed) -> that many distinct texts of 2 to 60 made-up words in a few lines."""

    def make(number: int, seed: int = 0) -> list[str]:
        words = random.Random(0)
        syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
        lexicon = ["".join(words.choices(syllables, k=words.randint(1, 4))) for _ in range(300)]
        choices = random.Random(seed)
        texts = []
        for i in range(number):
            chosen = choices.choices(lexicon, k=choices.randint(2, 60))
            texts.append(f"{i} " + "".join(word + choices.choice("     \n") for word in chosen))
        return texts

    return make


@pytest.fixture(scope="session")
def make_batch():
    """A function (lengths of each row's documents, T, V) -> a batch of random ids below V."""

    def make(lengths: list[list[int]], T: int, V: int) -> Batch:
        rng = np.random.default_rng(0)
        segment_ids_BT = np.zeros((len(lengths), T), np.int32)
        starts_BT, ends_BT = np.zeros_like(segment_ids_BT), np.full_like(segment_ids_BT, T)
        for row, sizes in enumerate(lengths):
            borders = [0, *itertools.accumulate(sizes)]
            starts_BT[row, borders[-1] :] = borders[-1]
            for number, (first, last) in enumerate(itertools.pairwise(borders)):
                segment_ids_BT[row, first:last] = number + 1
                starts_BT[row, first:last], ends_BT[row, first:last] = first, last
        return Batch(
            tokens_BT=rng.integers(0, V, segment_ids_BT.shape, dtype=np.int32),
            targets_BT=rng.integers(0, V, segment_ids_BT.shape, dtype=np.int32),
            loss_weights_BT=(segment_ids_BT > 0).astype(np.float32),
            segment_ids_BT=segment_ids_BT,
            positions_BT=np.arange(T, dtype=np.int32)[None, :] - starts_BT,
            document_starts_BT=starts_BT,
            document_ends_BT=ends_BT,
        )

    return make


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory, make_texts):
    """The file of a tokenizer of 400 pieces."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    path.write_bytes(train_tokenizer(make_texts(200), TokenizerConfig(vocabulary_size=400, processes=1)))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path):
    """A tokenizer of 400 pieces."""
    return load_tokenizer(tokenizer_path)


@pytest.fixture(scope="session")
def compiled_folder(shared):
    """A folder that keeps compiled programs for the tests of a process: tiny runs compile the same few.

    Of its own for each process, since JAX writes what another may be reading.
    """
    return str(shared / f"compiled_{os.environ.get('PYTEST_XDIST_WORKER', '')}")


# A traced step is that of an optimizer, which is made of functions: the same one for the same settings.
_make_optimizer_once = functools.cache(make_optimizer)


@pytest.fixture(scope="module")
def compiled(compiled_folder):
    """Uses that folder in the tests of a module; returns what does so in another process, as environment variables.

    A run of what was run before in this process is not even traced again, so no test here may change what is traced.
    """
    options = {"jax_compilation_cache_dir": compiled_folder, "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxformer.experiment.experiment, "make_optimizer", _make_optimizer_once)
        yield {name.upper(): str(value) for name, value in options.items()} | {"JAX_NUMPY_RANK_PROMOTION": "raise"}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def experiment_files(shared, make_texts):
    """The experiment file of each variant, beside the two corpora."""
    folder = shared / "experiments"
    with hold(shared / "experiments.lock", wait="writing experiments"):
        if not folder.exists():
            write_experiments(folder, make_texts)
    return {name: folder / f"{name}.py" for name in tiny_run.VARIANTS}


def write_experiments(folder, make_texts):
    folder.mkdir()
    corpora = []
    for seed, number in enumerate((300, 90)):
        path = folder / f"corpus_{seed}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(number, seed)))
        corpora.append(f"CorpusConfig(kind='jsonl', path={str(path)!r}, validation_share=0.1, weight={1 + 2 * seed})")
    mixture = f"CorpusConfig(kind='mixture', parts=({corpora[0]}, {corpora[1]}))"
    for name, fields in tiny_run.VARIANTS.items():
        corpus = mixture if name.startswith("mixture") else corpora[0]
        (folder / f"{name}.py").write_text(tiny_run.EXPERIMENT.format(corpus=corpus, **fields))


@pytest.fixture(scope="session")
def uninterrupted(experiment_files, shared):
    """A function from a variant to the folder of its run, which nothing stopped."""

    def run(variant):
        folder = shared / "uninterrupted" / variant
        folder.parent.mkdir(exist_ok=True)
        with hold(shared / f"{variant}.lock", wait="training"):
            if not (folder / "summary.json").exists():
                assert main(tiny_run.command(experiment_files[variant], folder)) == 0
        return folder

    return run
