"""Validation by document, tasks by item, and samples."""
