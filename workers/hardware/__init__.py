"""What is here: what this machine can give to experiments."""
