"""Document-masked causal attention: one interface, several implementations, and the choice among them."""
