"""MMLU, BBH and GSM8K for some models of configs/sni_smollm2.py.

  python -m edsft_jax.main evaluate --config=configs/sni_benchmarks.py \
      --workdir=runs/sni_smollm2
  python scripts/keep_study.py benchmarks runs/sni_smollm2 benchmarks.csv

The pretrained model, random, and the strategy with the lowest loss, at the
largest budget for seeds 0 to 2. Two questions per subject of MMLU (114), one
per task of BBH (27) and 25 of GSM8K, the last without worked examples: the
standard error of an accuracy is then up to 0.1, so only collapses can be seen.
docs/sni_smollm2/benchmarks.csv shows none: MMLU is 0.30 without finetuning and
0.24 to 0.26 with it, BBH 1 and 2 to 4 of 27, GSM8K at most 1 of 25. It took 47
minutes on two CPU cores.
"""

import ml_collections

from configs import benchmarks, sni_smollm2


def get_config() -> ml_collections.ConfigDict:
  """Seven models, three benchmarks."""
  c = sni_smollm2.get_config()
  c.selection.strategies = ('random', 'k_center')
  c.study.budgets = (max(c.study.budgets),)
  c.study.seeds = (0, 1, 2)
  c.study.random_seeds = ()
  c.study.full_pool = False
  c.evaluation.tasks = ('mmlu', 'bbh', 'gsm8k')
  benchmarks.set_files(c)
  c.evaluation.mmlu.limit = 2
  c.evaluation.bbh.limit = 1
  c.evaluation.bbh.max_new_tokens = 256
  c.evaluation.gsm8k.shots = 0
  c.evaluation.gsm8k.limit = 25
  c.evaluation.gsm8k.max_new_tokens = 256
  c.report.metric = 'mmlu.accuracy'
  return c
