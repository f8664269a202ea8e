"""What moves the weights: parameter groups, schedules, moving averages, and how far a run is."""
