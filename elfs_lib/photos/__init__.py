"""People's own images: the list to label, the way back from labels, the report."""
