"""How a process is made to run: the OCI runtime, the shims that hold containers, control groups.

Knows nothing of Docker.
"""
