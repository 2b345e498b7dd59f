"""Bounds of how encoders train and look, for their configurations and for parameters of a run.

They stand apart since configurations import PyTorch, which reading parameters does without.
"""

EPOCHS = {"ge": 1}
VIEWS = {"ge": 1}  # crops of each image
VIEW_AREA = {"gt": 0, "le": 1}  # share of the image in a crop
