"""What decays where embeddings do not."""

import jax.numpy as jnp
import numpy as np

from jaxformer.optimizer import GROUPS, decayed
from jaxformer.parts.embeddings_undecayed import EmbeddingsUndecayed

X = jnp.array([1.0, -2.0])


def test_all_matrices_but_embeddings_decay():
    ours = {group: decayed(EmbeddingsUndecayed(), group, X, X).tolist() for group in GROUPS}
    assert ours == {"embedding": [0, 0], "unembedding": [1, -2], "matrix": [1, -2], "gain": [0, 0]}


def test_another_decay_is_kept_for_the_others():
    inner = EmbeddingsUndecayed(EmbeddingsUndecayed())
    np.testing.assert_array_equal(decayed(inner, "matrix", X, -X), X)
