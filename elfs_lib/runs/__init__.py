"""Whole runs and sweeps: stages with progress, notebooks, the book."""
