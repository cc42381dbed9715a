"""Model to Engine API JSON, per API version; pure, with Docker's spelling."""
