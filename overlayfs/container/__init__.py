"""Which containers are there, and how does a program run in one?

`containers` (Container, Containers) keeps the writable layers; `process`, `users` and `mountpoints` read what the image
asks for, `namespaces` and `runtime` prepare, `supervise` runs. A container is used by one process at a time, which is
named in its record. Namespaces are entered by a process that has one thread.
"""
