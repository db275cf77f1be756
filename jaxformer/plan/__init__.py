"""What a run will take, and how its step fits a device."""
