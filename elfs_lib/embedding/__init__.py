"""Embeddings: the registry of encoders, training one on the images, neighbours."""
