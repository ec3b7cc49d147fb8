"""Recipes and deployments as text: read, held against their rules, and written."""
