"""What an image becomes: crops on the workers, colors on the device."""
