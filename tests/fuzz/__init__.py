"""Feeds every parser with what nobody meant, and lets nothing but its documented errors out."""
