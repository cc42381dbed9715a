"""Containers: what they are, how they are kept, and what one can do with them."""
