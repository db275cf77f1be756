"""A folder of experiment files."""

import pytest
from variant_files import HEADER


@pytest.fixture
def write(tmp_path):
    """A function (name, expression) -> the path of an experiment file beside the others."""

    def write(name, expression):
        path = tmp_path / f"{name}.py"
        path.write_text(f"{HEADER}EXPERIMENT = {expression}\n")
        return str(path)

    write("root", "replace(load_experiment('baseline'), {'training.steps': 900})")
    return write
