"""How do images come from registries and go to them?

The distribution protocol (OCI distribution specification): `transfer` (pull, push, tags) over `repository`,
`download` and `upload`; `connection` sends requests, `auth` and `credentials` answer challenges, `endpoints` reads
registries.toml. Blobs are moved by trio tasks of one thread; only verified blobs enter the store.
"""
