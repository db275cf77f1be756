"""An experiment file changes values only: what it changes in place is refused by its name, and put back."""

import ast
import os

import jax
import pytest

import jaxformer.evaluation.tasks
import jaxformer.loop
import jaxformer.model
from jaxformer.config import UserError
from jaxformer.experiment.patches import only_declares
from jaxformer.experiment.resolution import resolve

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

VARIANT = """
EXPERIMENT = Variant(parent='baseline', question='Why?', change={'optimizer.b1': %s}, expected=(-1, 1), source='a test')
"""


def write(folder, code, value="0.95"):
    path = folder / "b1.py"
    path.write_text(f"from jaxformer.experiment import Variant\n{code}\n{VARIANT % value}")
    return path


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("import jaxformer.model\njaxformer.model.activate = lambda x, kind: x", "jaxformer.model.activate"),
        ("from jaxformer import loop\nloop.save = None", "jaxformer.loop.save"),
        ("from jaxformer.model import Block\nBlock.__call__ = None", "jaxformer.model.Block.__call__"),
        ("from jaxformer.loop import save_now\nsave_now.__code__ = (lambda: 0).__code__", "jaxformer.loop.save_now"),
        ("import jaxformer.model\njaxformer.model.sum = max", "jaxformer.model.sum"),
        ("from jaxformer.evaluation.tasks import TASKS\nTASKS.clear()", "jaxformer.evaluation.tasks.TASKS"),
        ("import sys\nsys.modules['jaxformer.model'] = sys", "sys.modules['jaxformer.model']"),
        ("import optax\noptax.adamw = optax.sgd", "optax.adamw"),
        ("import jax\njax.nn.relu = abs", "jax.nn.relu"),
        ("import jax\njax.config.update('jax_enable_x64', True)", "jax.config.jax_enable_x64"),
        ("import os\nos.environ['XLA_FLAGS'] = '--xla_a=1'", "os.environ['XLA_FLAGS']"),
    ],
)
def test_a_file_that_changes_what_it_does_not_declare_is_refused_by_name(code, named, tmp_path):
    watched = (jaxformer.model, jaxformer.model.Block, jaxformer.loop, jax.nn)
    before = [dict(vars(each)) for each in watched], dict(os.environ), dict(jax.config.values)
    computed, tasks = jaxformer.loop.save_now.__code__, dict(jaxformer.evaluation.tasks.TASKS)
    with pytest.raises(UserError) as error:
        resolve(str(write(tmp_path, code)))
    assert f"b1.py: it changes {named} in place" in str(error.value)
    assert ([dict(vars(each)) for each in watched], dict(os.environ), dict(jax.config.values)) == before
    assert (jaxformer.loop.save_now.__code__, jaxformer.evaluation.tasks.TASKS) == (computed, tasks)
    assert resolve(str(write(tmp_path, ""))).experiment.optimizer.b1 == 0.95


@pytest.mark.parametrize(
    ("code", "declares"),
    [
        ("'Why.'\nimport dataclasses\nfrom jaxformer.model import Block as B\nX = B(a=[1, -2], b={'c': B()})", True),
        ("from jaxformer.experiment import load_experiment as l\nX = dataclasses.replace(l('a').model, width=2)", True),
        ("import jaxformer.model", False),
        ("import my_module", False),
        ("from my_module import change\nX = change()", False),
        ("X = setattr(1, 'a', 2)", False),
        ("from jaxformer.evaluation.tasks import TASKS\nX = TASKS.clear()", False),
        ("X = [x for x in (1, 2)]", False),
        ("X = lambda: 1", False),
        ("from jaxformer.model import Block\nBlock.x = 1", False),
        ("X += 1", False),
        ("def f(): pass", False),
        ("if X: pass", False),
    ],
)
def test_files_that_are_not_watched_can_change_nothing(code, declares):
    assert only_declares(ast.parse(code)) == declares


def test_what_a_change_does_when_it_is_called_is_refused_too(tmp_path):
    code = "import jaxformer.model\ndef change(value, parent):\n    jaxformer.model.activate = None\n    return 0.95\n"
    with pytest.raises(UserError, match=r"the change of optimizer\.b1 changes jaxformer\.model\.activate in place"):
        resolve(str(write(tmp_path, code, "change")))
    assert jaxformer.model.activate is not None


def test_what_is_changed_elsewhere_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxformer.model, "activate", abs)
    assert resolve(str(write(tmp_path, "import math\nimport os"))).experiment.optimizer.b1 == 0.95
    assert jaxformer.model.activate is abs
