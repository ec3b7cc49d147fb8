"""forge's own model skeletons: package data that ``forge.repository`` lays out.

Each ``<role>.pbtxt`` becomes a config, each ``<role>.py`` the lone ``model.py`` that Triton's Python backend loads. These
modules therefore import nothing of forge, and little else: numpy, tokenizers, and what Triton's stub brings.
"""
