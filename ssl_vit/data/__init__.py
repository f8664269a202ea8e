"""Images, from where they lie to a normalized batch on the device: sources -> views -> batch -> color."""
