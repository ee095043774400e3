"""A model on MMLU, BIG-Bench Hard and GSM8K; nothing is chosen or trained.

  python -m edsft_jax.main pool evaluate --config=configs/benchmarks.py \
      --workdir=runs/benchmarks --config.model.path=HF_DIR

reads mmlu_test.jsonl.gz, mmlu_dev.jsonl.gz, bbh.jsonl.gz, bbh_cot_prompts.json,
gsm8k_test.jsonl.gz and gsm8k_train.jsonl.gz in data/; README.md has the results
of SmolLM2-135M-Instruct next to published ones. Questions are the first of each
subject and task, so that a model of this size takes minutes on two cores; a
limit of 0 takes all.
"""

import ml_collections

from edsft_jax import config


def get_config() -> ml_collections.ConfigDict:
  """The protocols of lm-evaluation-harness, on plain prompts."""
  c = config.get_config()
  c.evaluation.tasks = ('mmlu', 'bbh', 'gsm8k')
  c.evaluation.mmlu.path = 'data/mmlu_test.jsonl.gz'
  c.evaluation.mmlu.shots_path = 'data/mmlu_dev.jsonl.gz'
  c.evaluation.mmlu.limit = 10
  c.evaluation.bbh.path = 'data/bbh.jsonl.gz'
  c.evaluation.bbh.shots_path = 'data/bbh_cot_prompts.json'
  c.evaluation.bbh.limit = 2
  c.evaluation.gsm8k.path = 'data/gsm8k_test.jsonl.gz'
  c.evaluation.gsm8k.shots_path = 'data/gsm8k_train.jsonl.gz'
  c.evaluation.gsm8k.limit = 40
  c.report.metric = 'mmlu.accuracy'
  return c
