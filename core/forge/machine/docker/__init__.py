"""Docker: images, containers that run commands, and whose they are. The only files that import its SDK."""
