"""The main job on the built-in demo: all seven stages in a few minutes.

  python -m edsft_jax.main --config=configs/quickstart.py \
      --workdir=runs/quickstart

Reproduces nothing published: the pool is generated, the model is tiny. It
shows the whole way and what its result looks like.
"""

import ml_collections

from edsft_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Four strategies, three budgets, three seeds on the demo."""
  c = config.get_config()
  c.scoring.max_new_tokens = 16
  # Chosen by what random choice reaches, before any other strategy was run.
  c.finetuning.learning_rate = 4e-3
  c.evaluation.max_new_tokens = 16
  c.report.title = 'edsft_jax quickstart'
  return c
