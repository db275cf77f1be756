"""Half of the rows from DCLM instead of a tenth."""

from jaxformer.experiment import Variant, times

EXPERIMENT = Variant(
    parent="mixture_100m",
    question="Are pages that read like good answers worth half of the rows beside pages that teach?",
    change={"corpus.parts.1.weight": times(9)},
    expected=(-0.01, 0.01),
    source="Allal et al. 2025, arXiv 2502.02737: FineWeb-EDU leads on knowledge, DCLM on commonsense; mixed",
)
