"""What users met in other trainers and must not meet here: a test for each public report, run as a user would run it.

Each names the report, what its user did, and what must happen. Whoever finds another adds it.
"""

import json
import shutil

import pytest
from user import EXPERIMENT, User

pytestmark = pytest.mark.device_free


def report(source: str, *, did: str, must: str):
    """Returns the mark of a row: the public report, what its user did, and what must happen here."""
    return pytest.mark.foreign_fault(source=source, did=did, must=must)


@pytest.fixture
def user(tmp_path, make_texts, compiled):
    """A user with a folder of their own."""
    return User(tmp_path, make_texts(120), compiled)


# Paths.

# Streams, terminals and locales.

# Signals and processes.

# What the environment sets for JAX.

# Corpora.

# The Hub.

# Runs and checkpoints.

# Studies.

STUDY = ("--parent=root", "--variants=normed,warm")


def write_variant(user: User, name: str, change: dict, parent: str = "root") -> None:
    """Writes the experiment file of one change."""
    options = f"parent={parent!r}, question='Why?', change={change!r}, expected=(-1, 1), source='a test'"
    user.write(
        f"experiments/{name}.py",
        f"from jaxformer.experiment import Variant\nEXPERIMENT = Variant({options})\n",
    )


def write_study(user: User, *changes: tuple[str, str]) -> None:
    """Writes the experiment `root`, of which texts may be changed, and two variants of it."""
    experiment = EXPERIMENT
    for before, after in (("validation_bytes=200", "validation_bytes=3000"), *changes):
        assert before in experiment
        experiment = experiment.replace(before, after)
    user.write("experiments/root.py", experiment)
    write_variant(user, "normed", {"model.qk_norm": True})
    write_variant(user, "warm", {"optimizer.warmup_steps": 3})


def copy_run(source, target) -> None:
    """Copies the folder of a run as that of another seed or experiment, whose losses are a little different."""
    shutil.copytree(source, target)
    name, seed = target.parent.name, int(target.name.removeprefix("seed_"))
    record = json.loads((target / "config.json").read_text())
    record |= {"experiment": name, "seed": seed, "identity": record["identity"] | {"seed": seed}}
    (target / "config.json").write_text(json.dumps(record))
    documents = target / "evaluations/step_4/validation.documents.jsonl"
    rows = [json.loads(line) for line in documents.read_text().splitlines()]
    factor = 1 + 1e-3 * (seed + len(name))
    documents.write_text("".join(json.dumps(row | {"nats": row["nats"] * factor}) + "\n" for row in rows))


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory, make_texts, compiled):
    """The folder of a user whose runs are all finished: `root`, `normed` and `warm`, with three seeds each."""
    user = User(tmp_path_factory.mktemp("study"), make_texts(120), compiled)
    write_study(user)
    runs = user.folder / "runs"
    for name in ("root", "normed", "warm"):
        ended = user.train("--seed=0", experiment=name, workdir=f"runs/{name}/seed_0")
        assert ended.status == 0, ended.err
        for seed in (1, 2):
            copy_run(runs / name / "seed_0", runs / name / f"seed_{seed}")
    return user.folder


@pytest.fixture
def researcher(finished_study, tmp_path, make_texts, compiled):
    """A user with a copy of that folder."""
    shutil.copytree(finished_study, tmp_path, dirs_exist_ok=True)
    return User(tmp_path, make_texts(120), compiled)


def verdicts(ended) -> dict[str, str]:
    """Returns the line of each variant in the table of decisions."""
    lines = [line for line in ended.out.splitlines() if line.startswith(("normed", "warm"))]
    return {line.split()[0]: line for line in lines}


def is_reported(ended, name: str) -> bool:
    """Returns whether a variant was compared, over three seeds."""
    return "[" in (line := verdicts(ended).get(name, "")) and " 3 " in line


@report(
    "catapult#2969; neon#8004; OpenHands/benchmarks#511",
    did="reported a study of which a summary.json was cut off, evaluations were gone, a folder was a link to a "
    "disk that is not mounted, one was half written and one made by another version",
    must="each is named with what to do, and all that can be read is compared",
)
def test_one_unreadable_run_leaves_the_others_their_report(researcher):
    runs = researcher.folder / "runs"
    for seed, name in ((3, "root"), (4, "root"), (3, "normed"), (4, "normed"), (3, "warm")):
        copy_run(runs / name / "seed_0", runs / name / f"seed_{seed}")
    (runs / "warm/seed_4").symlink_to("/nowhere/at/all")
    (runs / "root/seed_3/summary.json").write_bytes((runs / "root/seed_0/summary.json").read_bytes()[:40])
    shutil.rmtree(runs / "root/seed_4/evaluations")
    record = json.loads((runs / "normed/seed_3/config.json").read_text())
    record["config"]["model"]["hyper_connections"] = 4
    (runs / "normed/seed_3/config.json").write_text(json.dumps(record))
    documents = runs / "warm/seed_3/evaluations/step_4/validation.documents.jsonl"
    documents.write_bytes(documents.read_bytes()[:-30])
    (runs / "normed/seed_4/summary.json").unlink()  # It is not finished, which is no fault.

    ended = researcher.run("report", *STUDY)
    assert ended.status == 0, ended.err
    assert is_reported(ended, "normed") and is_reported(ended, "warm")
    page = (runs / "reports/root/index.html").read_text()
    for folder, advice in {
        "root/seed_3": "remove it and start the run again",
        "root/seed_4": "`jaxformer evaluate --workdir=runs/root/seed_4` makes it",
        "normed/seed_3": "has no field hyper_connections); train it anew",
        "warm/seed_3": "`jaxformer evaluate --workdir=runs/warm/seed_3` makes it",
        "warm/seed_4": "a link to what is not there",
    }.items():
        (line,) = (line for line in ended.err.splitlines() if f"runs/{folder}" in line)
        assert advice in line and f"runs/{folder}" in page, line
    assert "Traceback" not in ended.err and "normed/seed_4" not in ended.err


@report(
    "hydra#1407; wandb#2980",
    did="deleted the file of a variant that was rejected, months before the report was made again",
    must="the others are reported, and the one is named",
)
def test_a_variant_whose_file_is_gone_leaves_the_others_their_report(researcher):
    (researcher.folder / "experiments/normed.py").unlink()
    ended = researcher.run("report", *STUDY)
    assert ended.status == 0 and is_reported(ended, "warm"), ended.err
    assert "not reported: unknown experiment 'normed'" in ended.err
    # What is to be trained is complete before anything is.
    refused = researcher.run("ablate", *STUDY)
    assert refused.status == 2 and refused.err.startswith("jaxformer: unknown experiment 'normed'")


@report(
    "mlflow#15535; lm-evaluation-harness#1918",
    did="evaluated one seed of both experiments on another task as well, and the parent's on a third",
    must="what all runs have is compared, and the others are named",
)
def test_a_task_of_some_runs_alone_leaves_the_rest_compared(researcher):
    runs = researcher.folder / "runs"
    words = ["ba", "de", "fi", "go"]
    choices = {"text": words, "label": ["A", "B", "C", "D"]}
    rows = [{"question": word, "choices": choices, "answerKey": "A"} for word in words]
    researcher.write("arc_easy.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    evaluated = researcher.run("evaluate", "--workdir=runs/root/seed_0", "--task=arc_easy", "--data=arc_easy.jsonl")
    assert evaluated.status == 0, evaluated.err
    for target in ("arc_easy", "arc_challenge"):
        for kind in ("json", "items.jsonl"):
            source = runs / f"root/seed_0/evaluations/step_4/arc_easy.{kind}"
            for name in ("root", "normed") if target == "arc_easy" else ("root",):
                if (to := runs / f"{name}/seed_0/evaluations/step_4/{target}.{kind}") != source:
                    shutil.copy(source, to)
    ended = researcher.run("report", *STUDY)
    assert ended.status == 0, ended.err
    assert is_reported(ended, "normed") and is_reported(ended, "warm")
    assert "arc_challenge, arc_easy: not compared" in " ".join(ended.out.split())


@report(
    "mailinabox#2347; temci#26",
    did="reported a study again whose record beside the runs was half written, on a disk that took no other",
    must="the report is made, and a line says what is not kept or used",
)
def test_a_record_beside_the_runs_that_is_damaged_ends_no_report(researcher):
    researcher.write("runs/root/noise.json", '{"seeds": [0, 1')
    (researcher.folder / "runs/normed/comparison.json").mkdir()
    ended = researcher.run("report", *STUDY)
    assert ended.status == 0 and is_reported(ended, "normed") and is_reported(ended, "warm"), ended.err
    assert "noise.json: " in ended.err and "normed/comparison.json: Is a directory; it is not kept" in ended.err


@report(
    "litgpt#942",
    did="reported a study to a folder that cannot be made",
    must="it is refused before anything is read or printed",
)
def test_a_report_that_cannot_be_written_is_refused_at_once(researcher):
    ended = researcher.run("report", *STUDY, "--output=texts.jsonl/report")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("jaxformer: report texts.jsonl/report: ") and "choose another --output" in ended.err


@report(
    "hydra#1462; wandb#1879",
    did="ran a study whose parent diverges",
    must="its variants are not trained; the last line names the parent, what happened and its log; status 1",
)
def test_a_parent_that_diverges_ends_its_study(user):
    write_study(user, ("learning_rate=1e-2", "learning_rate=1e38"), ("(steps=4", "(steps=24"))
    ended = user.run("ablate", *STUDY, "--seeds=1")
    assert ended.status == 1, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("jaxformer: root seed 0 failed: 8 steps in a row had a loss or a gradient")
    assert "not trained, since they need it: 2" in last and last.endswith("see runs/root/seed_0.log")
    assert "train it first" not in ended.err
    assert not (user.folder / "runs/normed/seed_0").exists() and not (user.folder / "runs/warm/seed_0.log").exists()
    # What the report says of it leads to the cause, too.
    reported = user.run("report", *STUDY)
    assert reported.status == 2 and "seed 0 diverged" in reported.err and "runs/root/seed_0.log" in reported.err


@report(
    "wandb#2031; rslurm#52",
    did="resumed a study of finished runs, of which one's config.json and another's summary.json were damaged",
    must="the damaged are named, the others are judged, nothing is trained in vain; status 1",
)
def test_a_damaged_run_does_not_stop_a_resumed_study(researcher):
    runs = researcher.folder / "runs"
    (runs / "normed/seed_2/config.json").write_text('{"experiment": ')
    (runs / "warm/seed_1/summary.json").write_text('{"status": ')
    ended = researcher.run("ablate", *STUDY)
    assert ended.status == 1, ended.err
    assert is_compared_over(ended, "normed", 2) and is_compared_over(ended, "warm", 2)
    assert "runs/normed/seed_2/config.json: unreadable" in ended.err
    assert ended.err.splitlines()[-1].startswith("jaxformer: warm seed 1 refused: runs/warm/seed_1/summary.json: ")


@report(
    "hydra#1892; hydra#1462",
    did="ran a study in a folder where one job's log could not be opened",
    must="that job fails, and the others are run",
)
def test_a_job_that_cannot_be_started_stops_no_other(researcher):
    runs = researcher.folder / "runs"
    shutil.rmtree(runs / "normed/seed_1")
    (runs / "normed/seed_1.log").mkdir()
    ended = researcher.run("ablate", *STUDY)
    assert ended.status == 1, ended.err
    assert is_reported(ended, "warm") and is_compared_over(ended, "normed", 2)
    assert "normed seed 1 failed: it could not be started (" in ended.err.splitlines()[-1]


@report(
    "ShapeWorks#2621; wandb#749",
    did="started a study where the process that estimates it is killed, as when memory runs out",
    must="one line says so; no traceback, status 1",
)
def test_an_estimate_that_is_killed_ends_in_one_line(researcher):
    path = researcher.folder / "experiments/root.py"
    kill = "import multiprocessing, os, signal\nif multiprocessing.parent_process():\n"
    path.write_text(f"{kill}    os.kill(os.getpid(), signal.SIGKILL)\n{path.read_text()}")
    ended = researcher.run("ablate", *STUDY)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].startswith("jaxformer: the process that estimates what the runs will take")
    assert "Traceback" not in ended.err


@report(
    "mlflow#15535; fasttrackml#489",
    did="reported a study of which one run had skipped steps that were not finite",
    must="it is compared and drawn as the others are",
)
def test_a_run_that_skipped_steps_is_reported_with_the_others(researcher):
    path = researcher.folder / "runs/normed/seed_0/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    skipped = {"train/loss": "nan", "train/gradient_norm": "inf", "train/spike_score": "nan"}
    path.write_text("".join(json.dumps(line | (skipped if line["step"] == 2 else {})) + "\n" for line in lines))
    ended = researcher.run("report", *STUDY)
    assert ended.status == 0 and is_reported(ended, "normed") and is_reported(ended, "warm"), ended.err
    assert ended.err == ""


def is_compared_over(ended, name: str, seeds: int) -> bool:
    """Returns whether a variant was compared, over so many seeds."""
    return "[" in (line := verdicts(ended).get(name, "")) and f" {seeds} " in line


# Evaluation.


def write_task(user: User, name: str, rows: list[dict], task: str = "arc_easy") -> None:
    """Writes the file of a task to a folder."""
    user.write(f"{name}/{task}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def arc(question: str, texts=("ba", "de", "fi"), labels=("A", "B", "C"), answer="A") -> dict:
    """Returns a row of ARC."""
    return {"question": question, "choices": {"text": list(texts), "label": list(labels)}, "answerKey": answer}


def winogrande(word: str, tail: str = "go") -> dict:
    """Returns a row of WinoGrande."""
    return {"sentence": f"{word} _ {tail}.", "option1": "ba", "option2": "de", "answer": "2"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_texts, compiled):
    """The folder of a user who has trained a model."""
    user = User(tmp_path_factory.mktemp("trained"), make_texts(120), compiled)
    assert user.train().status == 0
    return user.folder


@pytest.fixture
def evaluator(trained, tmp_path, make_texts, compiled):
    """A user with a copy of that folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return User(tmp_path, make_texts(120), compiled)


def evaluate(user: User, *words: str):
    return user.run("evaluate", "--workdir=run", "--task=arc_easy,winogrande", *words)


@report(
    "litgpt#942; lm-evaluation-harness#4063",
    did="scored two tasks, of which the second's results could not be written, or the second could not be scored",
    must="it is refused before the first is scored",
)
@pytest.mark.parametrize("fault", ["other items", "damaged results", "a continuation longer than a row"])
def test_what_cannot_be_scored_or_written_is_refused_before_anything_is_scored(evaluator, fault):
    write_task(evaluator, "tasks", [arc(word) for word in ("go", "ki", "lu")])
    write_task(evaluator, "tasks", [winogrande(word) for word in ("go", "ki", "lu")], "winogrande")
    results = evaluator.folder / "run/evaluations/step_4"
    if fault == "other items":
        write_task(evaluator, "others", [winogrande("mu")], "winogrande")
        other = evaluator.run("evaluate", "--workdir=run", "--task=winogrande", "--data=others")
        assert other.status == 0, other.err
        message = "winogrande.json: it holds the scores of other items"
    elif fault == "damaged results":
        evaluator.write("run/evaluations/step_4/winogrande.json", '{"task": ')
        message = "winogrande.json: unreadable"
    else:
        write_task(evaluator, "tasks", [winogrande("go", "ba de fi go " * 30)], "winogrande")
        message = "cannot be scored in rows of 32"
    ended = evaluate(evaluator, "--data=tasks")
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err and len(ended.err.splitlines()) == 1
    assert not (results / "arc_easy.json").exists()


@report(
    "deepeval#3070; evalscope#1516; HRM-Text#2",
    did="scored questions whose labels stood for two options each, or had an option of white space",
    must="they are refused with file, line and what is wrong",
)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (arc("go", labels=("A", "A", "B")), "the label A stands for 2 options"),
        (arc("go", texts=("ba", "\t ", "fi")), "option 1 is blank"),
    ],
)
def test_questions_without_a_single_answer_are_refused(evaluator, row, message):
    write_task(evaluator, "tasks", [arc("ki"), row])
    ended = evaluator.run("evaluate", "--workdir=run", "--task=arc_easy", "--data=tasks")
    assert (ended.status, ended.out) == (2, "") and f"arc_easy.jsonl, line 2: {message}" in ended.err


@report(
    "lm-evaluation-harness#1395; hellaswag#8",
    did="scored a single question, which has the same option twice",
    must="no '± nan' is printed; equal options are counted in a line and in the record",
)
def test_one_question_with_equal_options_is_scored_and_they_are_counted(evaluator):
    write_task(evaluator, "tasks", [arc("go", texts=("ba", "ba", "fi"))])
    ended = evaluator.run("evaluate", "--workdir=run", "--task=arc_easy", "--data=tasks")
    assert ended.status == 0, ended.err
    assert "arc_easy" in ended.out and "nan" not in ended.out
    assert "1 of 1 items have the same option twice (items 0, from 0)" in ended.err
    record = json.loads((evaluator.folder / "run/evaluations/step_4/arc_easy.json").read_text())
    assert record["items_with_equal_options"] == 1


@report(
    "deepeval#3070; evalscope#1516; HRM-Text#2",
    did="scored questions whose labels or answers another program had written as numbers",
    must="a number and the text that reads as it are one label",
)
def test_numbers_and_texts_are_the_same_labels(evaluator):
    rows = [arc("go", labels=("1", "2", "3"), answer=3), arc("ki", labels=(1, 2, 3), answer="1")]
    write_task(evaluator, "tasks", rows)
    write_task(evaluator, "tasks", [winogrande("go") | {"answer": 2}, winogrande("ki")], "winogrande")
    ended = evaluate(evaluator, "--data=tasks")
    assert ended.status == 0, ended.err
    items = (evaluator.folder / "run/evaluations/step_4/arc_easy.items.jsonl").read_text().splitlines()
    assert [json.loads(line)["gold"] for line in items] == [2, 0]


@report(
    "litgpt#942",
    did="trained with a task of which the folder held the scores of other items for the last step",
    must="it is refused before the training, not after the last step, and again at each start",
)
def test_scores_in_the_way_of_the_last_evaluation_are_refused_before_training(evaluator):
    write_task(evaluator, "others", [arc("mu")])
    write_task(evaluator, "tasks", [arc("go"), arc("ki")])
    other = evaluator.run("evaluate", "--workdir=run", "--task=arc_easy", "--data=others")
    assert other.status == 0, other.err
    (evaluator.folder / "run/summary.json").unlink()
    options = ("--evaluation.task_data=tasks", "--evaluation.tasks=arc_easy")
    ended = evaluator.train(*options)
    assert ended.status == 2 and "arc_easy.json: it holds the scores of other items" in ended.err
    assert "resumed" not in ended.out and len(ended.err.splitlines()) == 1


# The table itself.


def test_every_row_names_its_report_and_what_must_happen():
    rows = [each for name, each in globals().items() if name.startswith("test_") and hasattr(each, "pytestmark")]
    marks = [mark for row in rows for mark in row.pytestmark if mark.name == "foreign_fault"]
    assert all(mark.kwargs[field] for mark in marks for field in ("source", "did", "must"))
    assert len(marks) == len([name for name in globals() if name.startswith("test_")]) - 1
