"""What the stand-ins share. No original has such a package."""
