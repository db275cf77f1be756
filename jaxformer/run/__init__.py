"""The folder of a run: what identifies it, and what it reads, writes and prints."""
