"""Ops: one folder each, with the contract in `__init__.py`, the truth in `reference.py`, one file per backend."""
