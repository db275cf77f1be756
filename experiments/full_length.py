"""Ten times the tokens: 25 billion, of any size: `--experiment=full_length --parent=baseline_500m`.

The sample of FineWeb-EDU holds about 10 billion tokens: the run passes over them two and a half times. Up to four
times, repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2023, arXiv 2305.16264).
"""

from jaxformer.experiment import Variant, times

EXPERIMENT = Variant(
    parent="baseline_27m",
    question="What are ten times the tokens worth?",
    change={"training.steps": times(10), "corpus.tokens": times(4)},
    bundle="ten times the tokens, from four times the corpus",
    expected=(-0.16, -0.04),
    source="Hoffmann et al. 2022, arXiv 2203.15556: 410.7 / tokens^0.28 is 0.46 nats less, of 4 to 5 bytes a token; "
    "the smallest size has less to gain",
)
