"""The quickstart, cut to what a test can wait for."""

import ml_collections

from configs import quickstart

SMALL = {
  'pool.limit': 150,
  'scoring.max_new_tokens': 4,
  'study.budgets': (8, 16),
  'study.seeds': (0, 1),
  'finetuning.epochs': 1,
  'evaluation.max_new_tokens': 4,
  'evaluation.limit': 12,
}


def small(**options) -> ml_collections.ConfigDict:
  """The quickstart's config with SMALL and the options given."""
  config = quickstart.get_config()
  config.update_from_flattened_dict({**SMALL, **options})
  return config
