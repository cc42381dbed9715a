"""Images: OCI content in the shared blob store, named by references, unpacked to layers.

Knows nothing of containers.
"""
