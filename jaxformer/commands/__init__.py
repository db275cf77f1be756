"""The installed program: a module for each command, thin over the library."""
