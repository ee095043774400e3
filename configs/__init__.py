"""Experiment configs: default.py has all defaults, the others override them."""
