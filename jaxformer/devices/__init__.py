"""The device at hand, the mesh of several, the processes of one run, and how long functions take."""
