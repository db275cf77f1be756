"""A larger study: twelve questions to the laptop's baseline, and whether two of the changes add up.

Its data are yours, as `experiments/laptop.py` says; `--study=first` needs none.
"""

from jaxformer import Study

STUDY = Study(
    parent="laptop",
    variants=(
        "no_document_mask",
        "learned_positions",
        "layernorm",
        "swiglu",
        "squared_relu",
        "grouped_query_attention",
        "qk_norm",
        "muon",
        "wsd",
        "learning_rate_half",
        "second_corpus_half",
        "concat_and_split",
        "muon_wsd",
    ),
)
