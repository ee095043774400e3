"""Held-out prompts: the reference's loss, and greedy answers against it."""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, ClassVar

import ml_collections

from edsft_jax import errors, store
from edsft_jax.evaluation import contamination
from edsft_jax.evaluation import metrics as metrics_lib
from edsft_jax.evaluation.task import (
  Generate,
  Generated,
  Item,
  Likelihood,
  Metric,
  Response,
  Scored,
  TaskInputs,
  generation_columns,
)
from edsft_jax.models import responses as responses_lib


class Heldout:
  """The prompts of heldout/heldout.parquet."""

  name: ClassVar[str] = 'heldout'
  version: ClassVar[int] = 1
  metrics: ClassVar[Mapping[str, Metric]] = {
    'loss': Metric(
      'Loss',
      False,
      'nats per token of the reference answer',
      weight='num_reference_tokens',
    ),
    'exact_match': Metric(
      'Exact match', True, 'share of answers equal to the reference'
    ),
    'rouge_l': Metric(
      'ROUGE-L', True, 'word overlap in order with the reference, from 0 to 1'
    ),
  }

  def __init__(self, inputs: TaskInputs):
    """Reads and encodes the held-out set, or its first evaluation.limit items.

    Raises:
      InputError: naming a prompt that cannot be encoded.
    """
    self.max_new_tokens: int = inputs.config.evaluation.max_new_tokens
    self.stop: tuple[str, ...] = ()
    self.about: Mapping[str, Any] = {
      'protocol': 'edsft_jax',
      'shots': 0,
      'template': inputs.config.prompt.template,
      'extractor': None,
    }
    self._prompt_format = inputs.prompt_format
    self._context = inputs.context
    heldout = store.read_prompts(inputs.workdir.heldout)
    heldout = heldout.first(inputs.config.evaluation.limit or len(heldout))
    references = heldout.responses or ()
    examples = []
    for item_id, prompt, reference in zip(
      heldout.ids, heldout.prompts, references, strict=True
    ):
      with errors.about_prompt(item_id):
        examples.append(self._encode(prompt, reference))
    self.items: Sequence[Item] = [
      Item(
        item_id,
        task,
        reference,
        requests,
        text=contamination.prompt_text(prompt),
      )
      for item_id, prompt, task, reference, (requests, _) in zip(
        heldout.ids,
        heldout.prompts,
        heldout.tasks or repeat(None, len(heldout)),
        references,
        examples,
        strict=True,
      )
    ]
    self.counts: Mapping[str, int] = {
      'prompts_truncated': sum(
        likelihood.truncated or generate.truncated
        for (likelihood, generate), _ in examples
      ),
      'references_cut': sum(cut for _, cut in examples),
      'reference_tokens': sum(
        likelihood.num_targets for (likelihood, _), _ in examples
      ),
      'with_control_tokens': sum(
        inputs.prompt_format.num_control_tokens(prompt, reference) > 0
        for prompt, reference in zip(heldout.prompts, references, strict=True)
      ),
    }

  def _encode(
    self, prompt: store.Prompt, reference: str
  ) -> tuple[tuple[Likelihood, Generate], bool]:
    """The two requests for a prompt, and whether its reference was cut."""
    tokens, truncated = self._prompt_format.encode_prompt(
      prompt, self._context - self.max_new_tokens, for_response=True
    )
    example = responses_lib.encode(
      self._prompt_format, prompt, reference, self._context
    )
    requests = (
      Likelihood(
        example.tokens, example.num_response, example.prompt_truncated
      ),
      Generate(tokens, truncated),
    )
    return requests, example.response_cut

  @staticmethod
  def check(
    config: ml_collections.ConfigDict,
    workdir: store.Workdir,
    planned: frozenset[str],
  ) -> None:
    """Rejects a missing held-out set; see Task.check.

    Raises:
      InputError: naming the option or the file.
    """
    errors.refuse_below('evaluation.limit', config.evaluation.limit, 0)
    if workdir.heldout.exists():
      return
    wanted = bool(config.pool.heldout_path or config.pool.heldout_fraction)
    if 'pool' in planned and wanted:
      return
    if store.Manifest(workdir).counts('pool').get('answers') == 0:
      # The command will stop at annotate, with a todo to fill.
      if 'annotate' in planned:
        return
      raise errors.InputError(
        'there is nothing to evaluate on, since the pool came without '
        'responses: set pool.heldout_path to a file of prompts with responses, '
        'or run only the stages pool score select annotate finetune'
      )
    raise errors.InputError(
      f'{workdir.heldout} does not exist: set pool.heldout_path or '
      'pool.heldout_fraction and run the pool stage first'
    )

  @staticmethod
  def fingerprint(
    config: ml_collections.ConfigDict, workdir: store.Workdir
  ) -> dict[str, Any]:
    """The held-out set, how many of its prompts, and the answers' length."""
    return {
      'heldout': store.hash_file(workdir.heldout),
      'evaluation.max_new_tokens': config.evaluation.max_new_tokens,
      'evaluation.limit': config.evaluation.limit,
    }

  def score(self, item: Item, responses: Sequence[Response]) -> dict[str, Any]:
    """Loss per reference token, and text metrics of the answer."""
    likelihood, generate = item.requests
    scored, generated = responses
    assert isinstance(scored, Scored)
    assert isinstance(generated, Generated)
    return {
      'prediction': generated.text,
      'loss': scored.nll / max(scored.num_tokens, 1),
      **{
        name: metric(generated.text, item.reference)
        for name, metric in metrics_lib.TEXT_METRICS.items()
      },
      **generation_columns(generate, generated),
      'num_reference_tokens': scored.num_tokens,
      'truncated': generate.truncated or likelihood.truncated,
    }
