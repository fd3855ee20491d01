"""Commands that keep images: in and out of the store as files, names, and what the store holds."""
