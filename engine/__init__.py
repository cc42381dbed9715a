"""The container engine of berth: docker's Engine API over an OCI runtime, in one asyncio process.

``daemon.py`` builds everything; ``api`` turns HTTP into service calls; ``containers``, ``images``, ``networks`` and
``volumes`` are the nouns, each with a pure model, a store and a service; ``snapshots`` makes root file systems,
``runtime`` makes processes run, ``kernel`` holds the system calls. ``shim`` and ``dns`` are small processes of their
own that import the standard library only (and dnspython), so this file imports nothing.
"""

__version__ = "0.1.0"

API_VERSION = (1, 51)
MIN_API_VERSION = (1, 24)
