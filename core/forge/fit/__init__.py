"""Whether a recipe fits a GPU: how many bytes it needs, what cards hold, and what would help. Pure."""
