"""A trained model as a folder for Hugging Face transformers, with its card."""

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import require
from jaxformer.experiment.experiment import trained_tokens
from jaxformer.experiment.files import comes_with_package
from jaxformer.experiment.variant import AD_HOC, OF
from jaxformer.host.files import read_json
from jaxformer.host.paths import on_this_machine, shell_word
from jaxformer.huggingface.architectures import architecture_of
from jaxformer.huggingface.comparison import Comparison, NotCompared, compare_with_transformers
from jaxformer.huggingface.model_card import model_card, without_folders
from jaxformer.huggingface.tensors import flat_parameters
from jaxformer.huggingface.tokenizer_json import ambiguity
from jaxformer.huggingface.writing import DTYPES, errors_of_writing, new_folder, write_model
from jaxformer.run.folder import evaluations_folder
from jaxformer.run.trained import Trained


class Exported(NamedTuple):
    """What an export wrote."""

    architecture: str
    """Of transformers."""
    parameters: int
    comparison: Comparison | NotCompared
    """With transformers, or why there was none."""


def export_run(trained: Trained, out: str | Path, *, keep_padding: bool = False, dtype: str = "float32") -> Exported:
    """Writes a trained model as a folder that `transformers` loads, and compares the two if it is installed.

    Args:
        trained: the model.
        out: a folder that does not exist or is empty; an export that fails leaves it so.
        keep_padding: keep the rows of the tables beyond the tokenizer's ids; else only those ids have logits.
        dtype: of the tensors: 'float32', 'bfloat16' or 'float16'.

    Raises:
        UserError: transformers has no such model or computes something else, or `out` cannot be written or is a URL.
    """
    require(dtype in DTYPES, f"dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    out = on_this_machine(out)
    model, row_length = trained.experiment.model, trained.experiment.packing.row_length
    architecture = architecture_of(model).name
    validation, tasks = _evaluations(trained)
    with new_folder(out) as folder:
        with errors_of_writing(out):
            parameters = write_model(
                folder,
                model,
                flat_parameters(trained.state.params),
                trained.tokenizer,
                row_length=row_length,
                keep_padding=keep_padding,
                dtype=dtype,
            )
        comparison = compare_with_transformers(folder, model, trained.tokenizer, row_length)
        card = model_card(
            trained.record,
            step=trained.step,
            tokens=trained_tokens(trained.experiment, trained.step),
            architecture=architecture,
            parameters=parameters,
            dtype=dtype,
            commands=[_train_command(trained.record), _export_command(trained, out, keep_padding, dtype)],
            notes=_notes(trained, out),
            validation=validation,
            tasks=tasks,
            comparison=comparison,
            ambiguity=ambiguity(trained.tokenizer),
        )
        with errors_of_writing(out):
            (folder / "README.md").write_text(card, encoding="utf-8")
    return Exported(architecture, parameters, comparison)


def _evaluations(trained: Trained) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Returns the validation of a step, None where there is none, and the scores of its tasks."""
    folder = evaluations_folder(trained.workdir, trained.step)
    records = [record for path in sorted(folder.glob("*.json")) if (record := read_json(path)) is not None]
    during_training = {f"validation/{name}": value for name, value in trained.validation().items()}
    validations = [each for each in (*records, during_training) if "validation/bits_per_byte" in each]
    return next(iter(validations), None), [record for record in records if "primary" in record]


def _train_command(record: dict[str, Any]) -> str:
    """Returns the command that began a run, without options that only change how it is computed."""
    lineage = record["lineage"]
    words = [f"--experiment={shlex.quote(_experiment_name(record))}", f"--seed={record['seed']}"]
    words += [f"--name={shlex.quote(record['experiment'])}"] if lineage.get("experiment") else []
    words += [f"--{path}={_word(after)}" for path, (_, after) in lineage.get("overrides", {}).items()]
    return " ".join(["jaxformer train", *words])


def _experiment_name(record: dict[str, Any]) -> str:
    """Returns the name of a run's experiment, without the name or the mark that the command line gave the run."""
    return record["lineage"].get("experiment") or record["experiment"].partition(AD_HOC)[0]


def _notes(trained: Trained, out: Path) -> list[str]:
    """Returns in sentences what the commands do not show."""
    own = [name for name in _experiment_name(trained.record).split(OF) if not comes_with_package(name)]
    values = [after for _, after in trained.record["lineage"].get("overrides", {}).values()]
    paths = [str(value) for value in (trained.workdir, out, *values)]
    notes = {
        f"{' and '.join(own)} did not come with jaxformer: --experiment takes the path of the author's own file.": own,
        "Absolute paths are shortened to their last name.": any(without_folders(path) != path for path in paths),
    }
    return [note for note, holds in notes.items() if holds]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else shlex.quote(without_folders(str(value)))


def _export_command(trained: Trained, out: Path, keep_padding: bool, dtype: str) -> str:
    workdir, out = (Path(without_folders(str(path))) for path in (trained.workdir, out))
    words = [f"--workdir={shell_word(workdir)}", f"--out={shell_word(out)}", f"--step={trained.step}"]
    words += ["--keep_padding"] if keep_padding else []
    words += [f"--dtype={dtype}"] if dtype != "float32" else []
    return " ".join(["jaxformer export", *words])
