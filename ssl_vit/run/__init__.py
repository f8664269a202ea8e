"""What a run has on the disk, who may write there, and the signals and launchers around it."""
