"""The card of an exported model: README.md, as the Hugging Face Hub shows it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.huggingface.comparison import Comparison, NotCompared

_HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- jaxformer
---
"""
USE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (each.from_pretrained("FOLDER") for each in (AutoModelForCausalLM, AutoTokenizer))
inputs = tokenizer("The ", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))
```

The tokenizer puts BOS before a text, as before each document in training; without it the predictions are not those of
the trained model.
"""


def model_card(
    record: Mapping[str, Any],
    *,
    step: int,
    tokens: int,
    architecture: str,
    parameters: int,
    dtype: str,
    commands: Sequence[str],
    notes: Sequence[str],
    validation: Mapping[str, Any] | None,
    tasks: Sequence[Mapping[str, Any]],
    comparison: Comparison | NotCompared,
    ambiguity: str,
) -> str:
    """Returns the card of a run's model in Markdown.

    Args:
        record: the run's `config.json`.
        step: of the checkpoint.
        tokens: that the run trained on until then.
        architecture: of transformers.
        parameters: how many were exported.
        dtype: of the tensors.
        commands: that made it, in order.
        notes: sentences on how to read the commands.
        validation: the content of `validation.json` for the step, or the part that `metrics.jsonl` has; None without a
            validation.
        tasks: the contents of the files of the tasks' scores.
        comparison: with transformers, or why there was none.
        ambiguity: as of `tokenizer_json.ambiguity`.
    """
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    git = record.get("git") or {}
    commit = f", git commit {git['commit']}{' with uncommitted changes' if git.get('changes') else ''}" if git else ""
    sections = [
        _HEAD,
        f"# {_text(record['experiment'])}, seed {record['seed']}, step {step:,}\n",
        f"{_text(record['question'])}\n",
        f"A decoder of {parameters:,} parameters ({architecture}, {dtype}), trained on {tokens:,} tokens with "
        f"jaxformer. {_beginning(record, tokens)}No licence of the weights is stated here: state one, as `license:` "
        "above, before you publish them. The licences of the data are below.\n",
        "## Data\n",
        _data(record),
        *_losses(record),
        "## Results\n",
        _results(step, validation, tasks),
        "## Configuration\n",
        _table(("option", "value"), [(f"`{name}`", value) for name, value in _identity(record).items()]),
        "## How it was made\n",
        "\n".join(["```", *commands, "```\n"]),
        *(["".join(f"{_text(note)} " for note in notes).strip() + "\n"] if notes else []),
        f"Trained with {versions}{commit}, on {record['device']}.\n",
        " ".join([comparison.describe(dtype), ambiguity]).strip() + "\n",
        USE,
    ]
    return "\n".join(sections)


def _beginning(record: Mapping[str, Any], tokens: int) -> str:
    """Returns sentences on the weights that a run of some tokens began from, and their own origin; '' for none."""
    initial, sentences = record.get("lineage", {}).get("init_from"), []
    while initial:
        known = {name: initial[name] for name in ("experiment", "seed", "step") if name in initial}
        what = ", ".join([initial["model_type"], *(f"{name} {value}" for name, value in known.items())])
        before = f"{initial['tokens']:,} tokens" if "tokens" in initial else "a number of tokens that is not recorded"
        subject, adds = ("That one", "it added") if sentences else ("It", "this run adds")
        sentences.append(
            f"{subject} began from the weights of {_text(without_folders(initial['path']))} ({_text(what)}), which was "
            f"trained on {before}; {adds} {tokens:,}. "
        )
        tokens, initial = initial.get("tokens", 0), initial.get("init_from")
    return "".join(sentences)


def _losses(record: Mapping[str, Any]) -> list[str]:
    """Returns a paragraph on what the tokenizer loses of the corpora; none if it loses nothing."""
    found = [
        f"of {_text(name)}, {trip['changed_documents']:,} of {trip['documents']:,} sampled documents come back "
        f"changed, and {trip['changed_bytes'] / max(1, trip['bytes']):.2%} of the bytes of their words"
        for name, corpus in record.get("corpora", {}).items()
        if (trip := corpus.get("round_trip")) and trip["changed_documents"]
    ]
    if not found:
        return []
    return [f"The tokenizer loses text: {'; '.join(found)}. The bits per byte below are of what it kept.\n"]


def _data(record: Mapping[str, Any]) -> str:
    """Returns a table of the corpora: origin, licence and size."""
    rows = []
    for name, corpus in record.get("corpora", {}).items():
        commit = f" at commit {corpus['commit']}" if corpus.get("commit") else ""
        rows.append(
            (
                _text(name),
                _text(without_folders(corpus.get("origin", "not recorded"))) + commit,
                _text(corpus.get("licence", "not recorded")),
                f"{corpus['training_documents']:,}",
                f"{corpus['training_tokens']:,}",
            )
        )
    return _table(("corpus", "origin", "licence", "training documents", "training tokens"), rows)


def _results(step: int, validation: Mapping[str, Any] | None, tasks: Sequence[Mapping[str, Any]]) -> str:
    """Returns the validation loss with its standard error, and the scores of tasks."""
    if validation is None:
        found = f"There is no validation of step {step:,}.\n"
    else:
        bits = _estimate(validation, "validation/bits_per_byte", 4)
        documents = sum(corpus["documents"] for corpus in validation.get("corpora", {}).values())
        over = f" over {documents:,} {'document' if documents == 1 else 'documents'}" if documents else ""
        error = " (± one standard error)" if "±" in bits else ""
        found = f"Validation: **{bits} bits per byte**{over}{error}.\n"
    if not tasks:
        return found
    rows = [
        (task["task"], f"{task['items']:,} of {task['official_items']:,}", _estimate(task, task["primary"], 2, 100))
        for task in tasks
    ]
    return f"{found}\n{_table(('task, 0-shot', 'items', 'accuracy, %'), rows)}"


def _estimate(values: Mapping[str, Any], name: str, digits: int, scale: float = 1) -> str:
    """Returns a mean and its standard error."""
    error = values.get(f"{name}_standard_error")
    spread = f" ± {scale * error:.{digits}f}" if isinstance(error, float) and math.isfinite(error) else ""
    return f"{scale * values[name]:.{digits}f}{spread}"


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that decided what the run learned, without empty ones, and the digest of its initial weights.

    For a given tokenizer, by its path or with the initial weights, it has no options for training one.
    """
    identity = record["identity"]
    is_trained = not identity.get("tokenizer.path") and not identity.get("init_from")
    return {
        name: _text(json.dumps(without_folders(value) if isinstance(value, str) else value))
        for name, value in identity.items()
        if value not in ("", [])
        and name != "init_from"
        and (is_trained or name == "tokenizer.path" or not name.startswith("tokenizer."))
    }


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def without_folders(text: str) -> str:
    """Returns only the last name of an absolute path, whose folders belong to one machine; any other text as it is."""
    return Path(text).name or text if text.startswith(("/", "~")) else text


def _text(text: str) -> str:
    """Returns a text in one line, escaped for Markdown, also in a table cell.

    An underscore between letters or digits stays: it begins no emphasis, and may belong to a link.
    """
    line = " ".join(text.split()).replace("<", "&lt;")
    return re.sub(r"[\\*`\[|]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
