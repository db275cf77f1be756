"""Ten changes of the first study's parent at once, in twelve runs on a seed, to see which are worth a study.

`jaxformer screen --study=screening --plan` prints which effects it can find; without `--plan` it runs, on the embedded
corpus.
One seed leaves more hours to confirm what looks best; two would give the effects standard errors.
"""

from jaxformer import Screening

STUDY = Screening(
    parent="first",
    variants=(
        "squared_relu",
        "layernorm",
        "qk_norm",
        "value_embeddings",
        "untied_embeddings",
        "grouped_query_attention",
        "soft_cap",
        "z_loss",
        "no_document_mask",
        "concat_and_split",
    ),
    runs=12,
)
