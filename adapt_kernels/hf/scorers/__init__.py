"""Learned scores of paths."""
