"""Document-masked causal attention: one contract, several implementations, and which one is chosen."""
