"""OCI images: what they are, where they are kept, and how they come and go. Knows nothing of FUSE."""
