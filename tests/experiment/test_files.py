"""Files of experiments and studies: where they are looked up, and what is wrong with one."""

from pathlib import Path

import pytest

from jaxformer.config import UserError
from jaxformer.experiment import files
from jaxformer.experiment.files import find_experiment, find_study, list_experiments, run_file

pytestmark = pytest.mark.device_free

CHECKOUT = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_experiments_of_the_working_directory_go_before_those_that_came_with_the_package(folder):
    assert find_experiment("swiglu") == CHECKOUT / "swiglu.py"
    own = write(folder / "experiments" / "swiglu.py")
    assert find_experiment("swiglu").resolve() == own
    assert find_experiment("qk_norm") == CHECKOUT / "qk_norm.py"
    near = write(folder / "near" / "swiglu.py")
    assert find_experiment("swiglu", folder=near.parent) == near


def test_experiments_of_both_places_are_listed_once_and_private_files_are_not(folder):
    for name in ("swiglu", "mine", "_helper"):
        write(folder / "experiments" / f"{name}.py")
    names = list_experiments()
    assert {"swiglu", "mine", "baseline"} <= set(names) and "_helper" not in names
    assert names == sorted(set(names))


def test_experiments_installed_within_the_package_are_found_without_a_checkout(folder, monkeypatch):
    package = folder / "site-packages" / "jaxformer"
    monkeypatch.setattr(files, "__file__", str(package / "experiment" / "files.py"))
    beside = write(folder / "site-packages" / "experiments" / "root.py")
    assert find_experiment("root") == beside, "as in a checkout"
    inside = write(package / "experiments" / "root.py")
    assert find_experiment("root") == inside


def test_a_study_is_found_by_name_and_by_path(folder):
    assert find_study("laptop") == CHECKOUT / "studies" / "laptop.py"
    own = write(folder / "experiments" / "studies" / "laptop.py")
    assert find_study("laptop").resolve() == own
    assert find_study("experiments/studies/laptop.py").resolve() == own


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labtop", "unknown study 'labtop'; did you mean laptop?"),
        ("qqqq", "unknown study 'qqqq'; known here: "),
        ("baseline", "unknown study 'baseline'; "),
        ("there/laptop", "study file there/laptop: no such file"),
    ],
)
def test_a_study_that_is_not_there_is_refused_with_the_nearest(name, message, folder):
    with pytest.raises(UserError) as error:
        find_study(name)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("what", "public"), [("study", "jaxformer"), ("experiment", "jaxformer.experiment")])
def test_an_import_from_where_nothing_is_any_longer_names_where_it_is(what, public, folder):
    path = write(folder / "old.py", "\nfrom jaxformer.gone import Study\n")
    with pytest.raises(UserError) as error:
        run_file(path, "STUDY", (int,), what)
    message = str(error.value)
    assert message.startswith(f"{what} {path}, line 2: ModuleNotFoundError: ")
    assert message.endswith(f"; import what the file needs from {public}")


def test_an_import_that_has_nothing_to_do_with_the_package_has_no_hint(folder):
    with pytest.raises(UserError, match=r"No module named 'gone'$"):
        run_file(write(folder / "old.py", "import gone\n"), "STUDY", (int,), "study")
