"""A model on MMLU, BIG-Bench Hard and GSM8K; nothing is chosen or trained.

  python -m edsft_jax.main pool evaluate --config=configs/benchmarks.py \
      --workdir=runs/benchmarks --config.model.path=HF_DIR

The first questions of each subject and task are asked, so that a model like
SmolLM2-135M-Instruct takes minutes on two cores; a limit of 0 asks all.
README.md says what to compare the results with.
"""

import ml_collections

from edsft_jax import config


def get_config() -> ml_collections.ConfigDict:
  """The protocols of lm-evaluation-harness, on plain prompts."""
  c = config.get_config()
  c.evaluation.tasks = ('mmlu', 'bbh', 'gsm8k')
  set_files(c)
  c.evaluation.mmlu.limit = 10
  c.evaluation.bbh.limit = 2
  c.evaluation.gsm8k.limit = 40
  c.report.metric = 'mmlu.accuracy'
  return c


def set_files(c: ml_collections.ConfigDict) -> None:
  """Reads questions and worked examples from data/, as they are published."""
  # The folders test and dev of Hendrycks et al.'s data.tar.
  c.evaluation.mmlu.path = 'data/mmlu/test'
  c.evaluation.mmlu.shots_path = 'data/mmlu/dev'
  # github.com/suzgunmirac/BIG-Bench-Hard.
  c.evaluation.bbh.path = 'data/BIG-Bench-Hard/bbh'
  c.evaluation.bbh.shots_path = 'data/BIG-Bench-Hard/cot-prompts'
  # grade_school_math/data of github.com/openai/grade-school-math.
  c.evaluation.gsm8k.path = 'data/gsm8k/test.jsonl'
  c.evaluation.gsm8k.shots_path = 'data/gsm8k/train.jsonl'
