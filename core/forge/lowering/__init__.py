"""How a recipe becomes steps: one room for each runtime. Pure."""
