"""Held-out prompts through a model: the reference's loss, the greedy answer.

Compiled once for each padded length and used for all cells, whose weights are
arguments.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import numpy as np

from edsft_jax import errors, models, store
from edsft_jax import mesh as mesh_lib
from edsft_jax.models import responses


@dataclasses.dataclass(frozen=True)
class Batch:
  """Arguments of one call, on the mesh, and whose rows they are."""

  indices: list[int]
  arrays: Any
  num_targets: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
  """What one model gives, in the order of the held-out set.

  Attributes:
    answers: decoded greedy answers.
    nats: summed loss of each reference with its end token, float64 [N].
  """

  answers: list[str]
  nats: np.ndarray


class Evaluator:
  """A tokenised held-out set and the two compiled functions over it.

  Attributes:
    num_tokens: tokens of each reference, its end token among them.
    num_truncated: prompts that were too long, to answer or to read with their
      reference.
    num_cut: references that are too long by themselves.
  """

  def __init__(
    self,
    decoder: models.Decoder,
    prompt_format: models.PromptFormat,
    heldout: store.Prompts,
    mesh: jax.sharding.Mesh,
    *,
    max_new_tokens: int,
    batch_tokens: int,
  ):
    """Takes structure and context of `decoder`; each call brings weights."""
    self._format = prompt_format
    context = decoder.config.context
    prompts, examples = [], []
    for id, prompt, reference in zip(
      heldout.ids, heldout.prompts, heldout.responses, strict=True
    ):
      with errors.of_prompt(id):
        prompts.append(
          prompt_format.encode_prompt(
            prompt, context - max_new_tokens, for_response=True
          )
        )
        examples.append(
          responses.encode(prompt_format, prompt, reference, context)
        )
    self.num_tokens = [example.num_response for example in examples]
    self.num_truncated = sum(
      truncated or example.prompt_truncated
      for (_, truncated), example in zip(prompts, examples, strict=True)
    )
    self.num_cut = sum(example.response_cut for example in examples)
    multiple = mesh_lib.batch_multiple(mesh)
    self._prompts = [
      Batch(
        g.indices,
        mesh_lib.shard_batch(
          mesh,
          models.pad_left(
            [prompts[i][0] for i in g.indices], g.length, g.num_rows
          ),
        ),
      )
      for g in models.group(
        [len(tokens) for tokens, _ in prompts],
        num_new=max_new_tokens,
        batch_tokens=batch_tokens,
        multiple=multiple,
      )
    ]
    self._examples = [
      Batch(
        g.indices,
        mesh_lib.shard_batch(
          mesh,
          responses.batch(
            [examples[i] for i in g.indices], g.length, g.num_rows
          ),
        ),
        responses.num_targets([examples[i] for i in g.indices], g.length),
      )
      for g in models.group(
        [len(example.tokens) for example in examples],
        num_new=0,
        batch_tokens=batch_tokens,
        multiple=multiple,
      )
    ]
    graph, _ = nnx.split(decoder)
    self._generate = jax.jit(
      functools.partial(
        _generate,
        graph,
        max_new_tokens=max_new_tokens,
        end_ids=tuple(prompt_format.end_ids),
      )
    )
    self._loss = jax.jit(
      functools.partial(_loss, graph), static_argnames='num_targets'
    )

  def __call__(
    self, weights: nnx.State, progress: Callable[[int], Any] = lambda n: None
  ) -> Result:
    """Runs the whole held-out set through one model.

    Args:
      weights: of a decoder built like the one given at first.
      progress: called with the number of prompts answered since the last call.
    """
    nats = np.zeros(len(self.num_tokens), np.float64)
    answers = [''] * len(self.num_tokens)
    for batch in self._examples:
      loss_B = self._loss(weights, batch.arrays, num_targets=batch.num_targets)
      nats[batch.indices] = np.asarray(loss_B)[: len(batch.indices)]
    for batch in self._prompts:
      tokens_BxT, num_B = jax.device_get(self._generate(weights, *batch.arrays))
      for row, i in enumerate(batch.indices):
        answers[i] = self._decode(tokens_BxT[row, : num_B[row]].tolist())
      progress(len(batch.indices))
    return Result(answers, nats)

  def _decode(self, ids: list[int]) -> str:
    """The answer without its end, which not every tokenizer calls special."""
    if ids and ids[-1] in self._format.end_ids:
      ids = ids[:-1]
    return self._format.decode(ids)


def _generate(
  graph: nnx.GraphDef,
  weights: nnx.State,
  tokens: jax.Array,
  mask: jax.Array,
  *,
  max_new_tokens: int,
  end_ids: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
  generation = models.generate(
    nnx.merge(graph, weights),
    tokens,
    mask,
    max_new_tokens=max_new_tokens,
    end_ids=end_ids,
  )
  return generation.tokens_BxT, generation.num_tokens_B


def _loss(
  graph: nnx.GraphDef,
  weights: nnx.State,
  batch: responses.Batch,
  *,
  num_targets: int,
) -> jax.Array:
  return responses.loss(nnx.merge(graph, weights), batch, num_targets)
