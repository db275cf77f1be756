"""Models as folders that Hugging Face transformers loads, written and read."""
