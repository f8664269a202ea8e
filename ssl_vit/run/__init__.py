"""What lies on the disk and who may write it: names, atomic writes, a run's directory, its lock, signals, launchers."""
