"""One small process that answers names for all networks, so that resolution does not notice a restart of the daemon.

Standard library only, and of that as little as possible: it holds about 5 MiB. ``zones`` knows the names, ``wire`` the
packets, ``server`` the sockets; the daemon feeds it over a unix socket.
"""
