"""The generated messages, one package for each version of the wire; only the codec imports them."""
