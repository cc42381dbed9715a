"""Networks (driver and addresses), endpoints (a container's interface on one) and sandboxes (its network namespace)."""
