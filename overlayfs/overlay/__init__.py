"""The merged tree: layers, lookup, listing, copy-up, whiteouts. Synchronous; needs no mount."""
