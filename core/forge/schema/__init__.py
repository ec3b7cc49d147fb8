"""What is written down and shared by all: a recipe's tables, a repository's manifest, and values that touch nothing."""
