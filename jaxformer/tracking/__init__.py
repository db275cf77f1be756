"""Where a person follows runs beside their folders: TensorBoard, trackio, Weights & Biases, or one's own trackers."""
