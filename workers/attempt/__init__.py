"""How does one experiment run?"""
