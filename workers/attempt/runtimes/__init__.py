"""What starts containers."""
