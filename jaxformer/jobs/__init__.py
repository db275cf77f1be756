"""Runs as processes of their own, in a queue; without jax."""
