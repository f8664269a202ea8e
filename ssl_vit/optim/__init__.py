"""What moves weights, and the clock that schedules read: parameter groups, schedules, moving averages."""
