"""Real clients against a running berth, and berth against dockerd."""
