"""NVIDIA's AIConfigurator, which foretells what a model serves on a card that need not be here."""
