"""What becomes of an image: geometry on the CPU workers, colors in batches on the device."""
