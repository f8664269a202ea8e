"""Images, from where they lie to a normalized batch on the device: source -> transform -> batch -> color."""
