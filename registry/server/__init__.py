"""The HTTP side of the registry: `app.py` builds and runs it, `dispatch.py` routes, one file per resource answers."""
