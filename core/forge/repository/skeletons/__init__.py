"""forge's own model skeletons: package data that ``forge.repository.config`` lays out.

Each ``<role>.pbtxt`` becomes a config, each ``<role>.py`` the ``model.py`` that Triton's Python backend loads (as ``1.model``).
Other modules stand beside the model.py that imports them as ``.name``. None of them imports forge, and little else: numpy,
tokenizers, and what Triton's stub brings.
"""
