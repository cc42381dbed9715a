"""The tests; the tree mirrors the source, see CONTRIBUTING.md."""
