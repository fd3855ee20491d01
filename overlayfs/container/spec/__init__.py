"""How do a container's options become members of an OCI runtime specification?

`settings` are the options as plain data, kept in the container's record; `parts` reads their texts; `fields` is the
table from each option to the members it sets in config.json; `seccomp` reads the profile that Debian ships.
"""
