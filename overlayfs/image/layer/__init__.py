"""How does the tar of one layer become a directory tree, and how do an upper's changes become a tar?

`unpack` (Unpacker) builds the tree and its `file_index`, `pack` (write_layer) writes the tar, `tampering` compares a
tree with its index, `disk_format` and `owners` know how owners and whiteouts are kept on the disk. The store is not
known here: callers give descriptors of directories. One thread unpacks or packs one layer; different layers at once.
"""
