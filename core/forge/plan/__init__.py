"""Pure: recipe + a family's answers + facts -> steps with keys, what is locked, and what a build would do."""
