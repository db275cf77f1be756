"""Muon and the schedule with a short decay together."""

from jaxformer.experiment import Merge

EXPERIMENT = Merge(
    parents=("muon", "wsd"),
    question="Do the gains of Muon and of a short decay add up?",
    expected=(-0.03, 0.0),
    source="Hägele et al. 2024, arXiv 2405.18392, found the schedule's gain with AdamW; Muon may share it",
)
