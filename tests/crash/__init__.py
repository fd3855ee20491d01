"""Faults: the daemon killed, the power cut, system calls failing, disks full, mounts refused.

What is injected where: `supervisor` decides each system call of a forked child, `replay` each write
of a block device.  What must hold afterwards is in `states` (the tree is one the operations pass
through) and in the test modules, one per section of the fault list.
"""
