"""What do the names and documents of an image say?

The documents (`documents`: descriptor, manifest, index, configuration), digests, references, platforms and Dockerfile
instructions of OCI and docker; and what all rooms share: `errors`, `limits`, `progress`. Pure functions and immutable
values: no I/O, usable from any thread.
"""
