"""Makes a kept change the parent of the next questions.

Reads what `jaxformer ablate` decided on VARIANT, and writes experiments/NAME.py: the change, the digest of its evidence
and the learning rate tuned for it, if any. Refuses a variant that was not kept; `--by_hand` promotes it anyway, and
records why. Appends a line to the ledger, RUNS/decisions.jsonl:

  jaxformer promote VARIANT --study=NAME
"""

import sys

from jaxformer.ablation.command_line import add_study_options
from jaxformer.ablation.promotion import find_comparison, promote
from jaxformer.ablation.study import Study
from jaxformer.ablation.study_file import choose_study, no_chain
from jaxformer.config import require
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line
from jaxformer.host.docstrings import docstring


@command
def main(arguments: list[str]) -> int:
    """Promotes a variant; returns the exit status."""
    parser = Parser("jaxformer promote", docstring(sys.modules[__name__]))
    parser.add_argument("variant", metavar="VARIANT", help="the variant, by name")
    add_study_options(parser, compares=False)
    add = parser.add_argument
    add(
        "--name",
        default="",
        metavar="NAME",
        help="name of the new experiment (default: PARENT_genN, N counts generations)",
    )
    add("--by_hand", default="", metavar="WHY", help="promote a variant that was not kept, and record why")
    options = parser.parse_args(arguments)
    require(not (options.study and options.parent), "give --study or --parent, not both")
    has_study = options.study or options.variants
    study = no_chain(choose_study(options.study, options.parent, options.variants)) if has_study else None
    found = find_comparison(options.runs, options.variant, parent=options.parent or "", study=study)
    made = promote(found, options.runs, name=options.name, by_hand=options.by_hand)
    kept, tuned = made.evidence, "".join(f", {path} {value}" for path, value in made.promoted.change.items())
    print_line(f"{made.path}: {kept.variant}{tuned}, {kept.word.value}: {kept.reason}")
    if kept.digest != found.digest:
        print_line(f"It was promoted before {kept.variant} was judged again: {found.word.value}: {found.reason}")
    print_line("\n".join(next_commands(made.name, made.promoted.first_seed)))
    return 0


def next_commands(name: str, first_seed: int) -> list[str]:
    """Returns the lines on what to do after a promotion."""
    last = first_seed + Study.seeds - 1
    return [
        f"Its next study uses seeds that did not choose it, {first_seed} to {last}, and trains them itself.",
        "Next, try changes of it, and confirm on those seeds that its gain holds:",
        f"  jaxformer ablate --parent={name} --variants=A,B",
        f"  jaxformer confirm {name}",
    ]
