"""Documents to packed batches; without jax, but for `packing`, which takes Grain."""
