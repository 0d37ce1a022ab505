"""Breaks a whole site on purpose while it works, and judges afterwards what the containers and stores say of it."""
