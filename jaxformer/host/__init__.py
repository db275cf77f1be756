"""What a run needs of the machine: files, locks, signals, the console and the cache; without jax."""
