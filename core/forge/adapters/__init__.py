"""The only rooms that import a third party's SDK or start a program; each SDK is imported by the function that uses it."""
