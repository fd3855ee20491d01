"""Commands that make images of other images."""
