"""What is kept on this machine, and how is it found again?

`store` (Store, Image) is the way in; `layers` (LayerStore) knows the unpacked layers, `lowers` what a mount gets,
`missing_layers` unpacks, `pruning` removes, `verify` finds damage. Any number of threads and processes: each process
holds the store's lock shared, a removal holds it alone; blobs, layers and names are published whole, by a rename.
"""
