"""Paired differences, their errors and what they decide, as functions of arrays; only numpy and scipy are used."""
