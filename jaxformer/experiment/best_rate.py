"""Which changes move the best learning rate, so that each arm is compared at its own."""

from collections.abc import Collection

from jaxformer.experiment.experiment import Experiment, step_tokens

RATE = "optimizer.learning_rate"

# Whether arms are tuned before they are compared: if the change moves the best rate, always, or never.
RETUNE = ("auto", "learning_rate", "off")

# Changes of these move it: all that scales an update, the length of a run, and the initial values. Shown for
# the width (Yang et al. 2022, arXiv 2203.03466), the depth (Yang et al. 2023, arXiv 2310.02244), the batch (Malladi et
# al. 2022, arXiv 2205.10287), the tokens (Bjorck et al. 2024, arXiv 2409.19913) and the decay, which acts as a product
# with it (Wang & Aitchison 2024, arXiv 2405.13698).
_MOVES = ("optimizer.", "training.steps", "model.width", "model.depth", "model.scaling", "init_from")


def moves_best_rate(paths: Collection[str], before: Experiment, after: Experiment) -> bool:
    """Returns whether a change of some fields moves the best learning rate; a change of a step's tokens does too."""
    return any(path.startswith(_MOVES) for path in paths) or step_tokens(before) != step_tokens(after)
