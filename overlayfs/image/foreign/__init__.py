"""Images that container engines keep: read straight from their storage, without their daemons, and never written.

Nothing is locked: the engines replace their records atomically, so each record is read whole. An image that the engine
removes meanwhile gives an error; once it is mounted, its files go. Ids from the records become parts of paths, so each
must be a plain hexadecimal id.
"""
