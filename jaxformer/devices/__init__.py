"""The local device, the mesh of several, the processes of one run, and the timing of functions."""
