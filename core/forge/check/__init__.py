"""What is wrong with a model repository (`forge check`) or with this machine (`forge doctor`), and how to fix it."""
