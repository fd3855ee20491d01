"""How is a new image made of another one?

`commit` (commit, append, squash) writes a layer into a blob (`layer_blob`; `verbatim` for the tar of somebody else),
then the configuration, the manifest and last the name. One thread calls; a second one compresses.
"""
