"""Which prompts to have answered: a registry of strategies and their stage.

Importing the registry must not import jax, so this file imports nothing.
"""
