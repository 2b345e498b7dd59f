"""Images and labels from files: the registry of datasets, readers, decoding, copies."""
