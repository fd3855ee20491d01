"""This machine: whether mounts work on it, and how its container engines are told to use our mount program."""
