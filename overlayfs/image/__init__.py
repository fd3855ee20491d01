"""OCI images: what they say, how they are kept, and how they come and go. Nothing here knows FUSE.

One room for each question, from the bottom up; each imports only from those before it, and the last three not from one
another:

- `oci`: what do names and documents say?
- `tar`: which bytes do a tar and its compression have?
- `layer`: how does the tar of one layer become a directory tree, and a tree or an upper a tar?
- `store`: what is kept on this machine, and how is it found again?
- `make`: how is a new image made of another one?
- `registry`: how do images come from registries and go to them?
- `archive`: how do images come from files and go to files?
- `inspect`: what is in an image, and which layer brought it?
"""
