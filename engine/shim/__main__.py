"""Starts the zygote as an isolated interpreter: `python -I -S engine/shim/__main__.py SOCKET DESCRIPTOR`.

Isolation keeps site packages out of every shim's memory; the package's own folder is therefore put on the path here.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from engine.shim import zygote

    zygote.main(sys.argv[1], int(sys.argv[2]))
