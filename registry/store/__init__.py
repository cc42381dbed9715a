"""Where content lies: storage drivers, and the blobs, repositories, uploads and leases kept through them."""
