"""Makes a plan true: what recipes stand on is resolved and fetched, commands are run, entries are laid."""
