"""Paired differences, their errors and what they decide, as functions of arrays; numpy and scipy alone."""
