"""A penalty on the log-partition."""

from jaxformer.experiment import Variant

EXPERIMENT = Variant(
    parent="baseline",
    question="Does the z-loss cost anything where training is stable already?",
    change={"model.z_loss": 1e-4},
    expected=(-0.003, 0.003),
    source="Chowdhery et al. 2022, arXiv 2204.02311: for stability, not for quality",
)
