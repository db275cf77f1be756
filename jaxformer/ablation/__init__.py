"""Runs of variants and parents: compared, judged, and queued as studies."""
