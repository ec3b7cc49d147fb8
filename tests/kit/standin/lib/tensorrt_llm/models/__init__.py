"""What the scripts ask of the models."""
