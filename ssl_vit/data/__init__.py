"""Pictures, from where they lie to a normalised batch on the device: sources -> views -> batch -> photometry."""
