"""What a study decided, as text, pictures and one page."""
