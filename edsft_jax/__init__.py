"""Choose which prompts to have answered, finetune on them, show what it saved.

WORKSPACE.md in the repository describes the code.
"""

__version__ = '0.1.0'
