"""How a root file system is made: layers, snapshots on top of them, and the confined work on untrusted trees.

``base.py`` holds the vocabulary. This file imports nothing: worker processes import single modules of this folder.
"""
