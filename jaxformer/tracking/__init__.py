"""Trackers that show runs outside of their folders: TensorBoard, trackio, Weights & Biases, or your own."""
