"""Experiment configs: default.py holds every option, the rest override it."""
