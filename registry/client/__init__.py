"""The client side of the distribution protocol: which hosts, how to log in, fetch and publish."""
