"""Reads rows from the files that people have, whatever their format."""
