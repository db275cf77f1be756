"""`baseline_100m` on a mixture: nine rows of FineWeb-EDU to one of DCLM (Li et al. 2024, arXiv 2406.11794).

Both corpora are validated on, whatever their share of the rows: a parent whose shares can be asked about.
"""

import dataclasses

from jaxformer.experiment import CorpusConfig, load_experiment, replace

BASELINE = load_experiment("baseline_100m")

EXPERIMENT = dataclasses.replace(
    replace(
        BASELINE,
        {
            "corpus": CorpusConfig(
                kind="mixture",
                parts=(
                    # Of each part as many tokens as it can come to be asked for.
                    dataclasses.replace(BASELINE.corpus, weight=9.0),
                    CorpusConfig(
                        kind="jsonl",
                        # One of its hundred shards.
                        path="hf://datasets/mlfoundations/dclm-baseline-1.0@a3b142c183aebe5af344955ae20836eb34dcf69b/"
                        "global-shard_01_of_10/local-shard_0_of_10/*.jsonl.zst",
                        licence="CC-BY-4.0",
                        validation_share=0.002,  # share of the documents
                        tokens=2_500_000_000,  # tokens
                        weight=1.0,  # share of the rows
                    ),
                ),
            ),
        },
    ),
    question="What does the baseline learn from nine rows of FineWeb-EDU to one of DCLM?",
)
