"""The `berth` command: the daemon's front door, and a small client for machines without a docker command line.

`serve` and `registry` start servers of this project in this process; every other command talks to a running
daemon over its socket, with the standard library only, so that a client starts quickly.
"""
