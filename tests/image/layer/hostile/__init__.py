"""Layers that want to get out, or to be more than they are: what each may do at most."""
