"""A containerd snapshotter: layers as containerd's overlay snapshotter lays them out, mounted by our mount program.

`service` answers containerd's calls, `snapshots` does what they ask, `metadata` knows which snapshots there are, and
`mounts` says how one is mounted. Needs the extra `overlayfs[containerd]`.
"""
