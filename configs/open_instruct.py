"""The finetuning recipe of open-instruct's first version, for Llama 2 7B.

  python -m edsft_jax.main --config=configs/open_instruct.py \
      --workdir=runs/flan --config.pool.path=flan_v2.jsonl \
      --config.model.path=meta-llama/Llama-2-7b-hf

The public recipe that is nearest to Bhatt et al. (2024), whose abstract does
not give their settings: a 100K sample of FLAN V2 and LoRA. Taken from
scripts/finetune_lora_with_accelerate.sh and reformat_datasets.py of
github.com/allenai/open-instruct. It needs an accelerator and has not been run
at this size, so its results are unknown.
"""

import ml_collections

from configs import benchmarks
from edsft_jax import config

# A new line follows the prompt, unless it ends with one or with a colon.
_TEMPLATE = (
  '{{ bos_token }}{% for message in messages %}{{ message.content }}'
  "{% if message.role == 'user' and not message.content.endswith('\\n') "
  "and not message.content.strip().endswith(':') %}{{ '\\n' }}{% endif %}"
  '{% endfor %}'
)


def get_config() -> ml_collections.ConfigDict:
  """LoRA of rank 64 for 5 epochs in batches of 128."""
  c = config.get_config()
  c.prompt.template = _TEMPLATE
  c.finetuning.lora_rank = 64
  c.finetuning.lora_alpha = 16.0
  c.finetuning.lora_dropout = 0.1
  c.finetuning.learning_rate = 1e-4
  c.finetuning.schedule = 'linear'
  c.finetuning.warmup_fraction = 0.03
  c.finetuning.weight_decay = 0.0
  c.finetuning.batch_size = 128
  c.finetuning.epochs = 5
  c.finetuning.max_length = 4096
  return c


def set_benchmarks(c: ml_collections.ConfigDict) -> None:
  """Evaluates only on MMLU, BBH and AlpacaEval, by open-instruct's protocols.

  No prompt of the pool is held out.
  """
  c.pool.heldout_fraction = 0.0
  c.evaluation.tasks = ('mmlu', 'bbh', 'alpaca_eval')
  benchmarks.set_files(c)
  c.evaluation.mmlu.protocol = 'open_instruct'
  c.evaluation.bbh.protocol = 'open_instruct'
  # tatsu-lab/alpaca_eval on the hub; outputs are written and not judged, until
  # evaluation.alpaca_eval.judge names a judge.
  c.evaluation.alpaca_eval.path = 'data/alpaca_eval.json'
  c.report.metric = 'mmlu.accuracy'
