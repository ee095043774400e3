"""Strategies that choose which prompts to have answered, and their stage.

Importing the registry must not import jax, so this file imports nothing.
"""
