"""The registry: an OCI distribution server, its store, and the client that talks to any registry.

It runs inside the engine's process and alone (`berth registry serve`), and imports nothing of the engine or the
command line. `store/` keeps content in registry:2's disk layout, `server/` speaks HTTP, `client/` speaks to other
registries; the modules beside them are pure vocabulary: digests, references, manifests, errors, settings.
"""
