"""Images that container engines keep: read straight from their storage, without their daemons, and never written.

Nothing is locked: podman and docker replace their records atomically, and of containerd's databases a consistent copy
is read. An image that the engine removes meanwhile gives an error; once it is mounted, its files go. Ids from the
records become parts of paths, so each must be a plain hexadecimal id, or a number.
"""
