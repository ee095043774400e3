"""Writes a cell's model for this and for other programs, with a model card."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from edsft_jax import models, processes, store, study
from edsft_jax.finetuning.trainer import Hyperparameters
from edsft_jax.models import lora

EXPORTS = ('adapter', 'merged', 'both')
CARD = 'README.md'


@dataclasses.dataclass(frozen=True)
class Export:
  """How models are written.

  Attributes:
    kind: one of EXPORTS; full finetuning has no adapter, so it is not used.
    hyperparameters: those of every cell.
    base: the directory of the base model.
    template: the option prompt.template.
  """

  kind: str
  hyperparameters: Hyperparameters
  base: pathlib.Path
  template: str

  @property
  def _is_lora(self) -> bool:
    return self.hyperparameters.method == 'lora'

  def write(
    self,
    decoder: models.Decoder,
    run: store.Run,
    cell: study.Cell,
    facts: Mapping[str, Any],
  ) -> None:
    """Writes run.model last, which marks the cell as done.

    Only the first process writes, but all of them have to call this.

    Args:
      decoder: the trained model.
      run: the cell's folder.
      cell: the cell.
      facts: steps and losses, for the card; may be empty.

    Raises:
      InputError: the disk is full.
    """
    if self._is_lora and self.kind == 'both':
      self.write_merged(decoder, run, cell, facts)
    if self._is_lora and self.kind != 'merged':
      # Every device has the whole adapter.
      if processes.is_first():
        self._write_adapter(decoder, run.model, cell, facts)
    else:
      whole = models.merged(decoder) if self._is_lora else decoder
      self._write_whole(whole, run.model, cell, facts)

  def write_merged(
    self,
    decoder: models.Decoder,
    run: store.Run,
    cell: study.Cell,
    facts: Mapping[str, Any],
  ) -> None:
    """Writes run.merged; see `write`."""
    self._write_whole(models.merged(decoder), run.merged, cell, facts)

  def _write_adapter(
    self,
    decoder: models.Decoder,
    directory: pathlib.Path,
    cell: study.Cell,
    facts: Mapping[str, Any],
  ) -> None:
    with store.replacing(directory) as partial:
      models.save_adapter(
        decoder,
        partial,
        models.portable_name(self.base),
        self.hyperparameters.rslora,
        self.hyperparameters.lora_dropout,
      )
      models.copy_tokenizer(self.base, partial)
      card = self._card(cell, facts, is_adapter=True)
      (partial / CARD).write_text(card, 'utf-8')

  def _write_whole(
    self,
    decoder: models.Decoder,
    directory: pathlib.Path,
    cell: study.Cell,
    facts: Mapping[str, Any],
  ) -> None:
    on_host = models.to_host(decoder)
    if on_host is None:
      return
    with store.replacing(directory) as partial:
      models.save_decoder(on_host, partial, self.base)
      card = self._card(cell, facts, is_adapter=False)
      (partial / CARD).write_text(card, 'utf-8')

  def _card(
    self, cell: study.Cell, facts: Mapping[str, Any], is_adapter: bool
  ) -> str:
    base = models.portable_name(self.base)
    h = self.hyperparameters
    method = 'full finetuning'
    if self._is_lora:
      method = f'LoRA of rank {h.lora_rank}, alpha {h.lora_alpha:g}'
      method += ', rank-stabilised' if h.rslora else ''
    chosen = (
      'every prompt of the pool'
      if cell.strategy == study.FULL_POOL
      else f'{cell.budget:,} prompts chosen by `{cell.strategy}`'
    )
    return _CARD.format(
      base=base,
      library='peft' if is_adapter else 'transformers',
      tags='[lora, edsft-jax]' if self._is_lora else '[edsft-jax]',
      name=cell.name,
      what='An adapter of' if is_adapter else 'Finetuned from',
      chosen=chosen,
      seed=cell.seed,
      method=method,
      rate=f'{h.learning_rate:g}',
      schedule=h.schedule,
      epochs=h.epochs,
      batch_size=h.batch_size,
      losses=_losses(facts),
      prompts=_PROMPTS.get(self.template, _OWN_TEMPLATE),
      load=(_LOAD_ADAPTER if is_adapter else _LOAD_WHOLE).format(base=base),
    )


def lacks_merged(run: store.Run, kind: str) -> bool:
  """Whether a finished cell lacks the merged model that is asked for."""
  has_adapter = (run.model / lora.ADAPTER_CONFIG).exists()
  return kind == 'both' and has_adapter and not run.merged.exists()


_PROMPTS = {
  'auto': "the tokenizer's chat template, if it has one (in lm-eval: "
  '`--apply_chat_template`), else as they are',
  'raw': 'as they are, without a chat template',
}
_OWN_TEMPLATE = (
  "a template of the study's own; see prompt.template in its config"
)

_LOAD_ADAPTER = """\
    from peft import AutoPeftModelForCausalLM
    model = AutoPeftModelForCausalLM.from_pretrained('.')

    lm_eval --model hf --tasks mmlu \\
        --model_args pretrained={base},peft=.,tokenizer=."""

_LOAD_WHOLE = """\
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained('.')

    lm_eval --model hf --tasks mmlu --model_args pretrained=."""

_CARD = """\
---
base_model: {base}
library_name: {library}
pipeline_tag: text-generation
tags: {tags}
---

# {name}

{what} `{base}` on the answers to {chosen} (seed {seed}), by edsft_jax.

- {method}
- AdamW, learning rate {rate}, {schedule} schedule, {epochs} epochs, batches \
of {batch_size}
{losses}- prompts: {prompts}

To load it, in this folder:

{load}
"""


def _losses(facts: Mapping[str, Any]) -> str:
  """Lines of a model card; none for older cells, which have no record."""
  if not facts:
    return ''
  lines = (
    f'- loss per response token: {facts["first_loss"]:.3f} at the first step, '
    f'{facts["last_loss"]:.3f} at the last\n'
  )
  if 'exported_step' in facts:
    lines += (
      f'- exported: the state after step {facts["exported_step"]} of '
      f'{facts["steps"]}, which has the lowest held-out loss\n'
    )
  return lines
