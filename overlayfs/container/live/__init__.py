"""How does a container live on after its command has returned?

`conmon` supervises the program (conmon(8): log, exit status, attach socket, terminal), `slirp4netns` is its private
network; both are programs of others, which end with the keeper, the process of ours that serves the container's tree.
`logs` and `attach` read what conmon writes, `signals` ends programs, `names` makes /etc/hosts and its neighbours.
"""
