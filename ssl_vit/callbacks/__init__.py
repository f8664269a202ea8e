"""What a training measures and writes beside its losses; each works in any `pl.Trainer`."""
