"""Images built from a Dockerfile: `dockerfile` reads it, `build` runs its stages, `stage` and `steps` the instructions.

A step is a container of the store whose changes become a layer (`sandbox`, `running`); `files` are what is copied.
"""
