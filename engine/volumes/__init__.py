"""Volumes: named folders that outlive containers."""
