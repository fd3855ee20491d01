"""One directory tree on disk: the system calls, marks and metadata of layers. No overlay semantics."""
