"""Folders as forge keeps them: surveyed, frozen, flushed, linked or copied elsewhere, removed."""
