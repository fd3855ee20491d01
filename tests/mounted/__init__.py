"""What can only be tested through a mount: the kernel, other users, real programs, hostile neighbours."""
