"""Triton's model repository: config.pbtxt, model.py, the folders of each model, and how an entry is swapped in."""
