"""The compiled programs: pure functions of weights and tokens.

Hooks compute values for each row. Everything that the host reads is replicated,
since it cannot read arrays that are on other hosts.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, TypeVar

from flax import nnx
import jax
import jax.numpy as jnp

from edsft_jax import mesh as mesh_lib
from edsft_jax.inference.decoding import (
  DecodeState,
  GreedyDecoding,
  Prefilled,
)
from edsft_jax.inference.logits import row_likelihood
from edsft_jax.inference.packing import sequence_masks
from edsft_jax.inference.prefixes import Prefixes, PrefixHook
from edsft_jax.inference.workers import Compiled
from edsft_jax.models import Decoder, KVCache, Output

T = TypeVar('T')
PromptHook = Callable[[Decoder, Output, jax.Array, jax.Array, Any], Any]
RowHook = Callable[[Any, jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class Hooks:
  """Functions to compute for each row; pure and traceable.

  Attributes:
    prefix: (decoder, output of the forward pass, tokens [1, P]) -> a pytree,
      for the one prefix that all prompts share.
    prompt: (decoder, output of the forward pass, tokens [B, L], mask [B, S, L],
      the result of `prefix`) -> a pytree of [B, S, ...] arrays, for rows of S
      prompts each. The mask is true at the tokens of a prompt; some prompts of
      a row may have none. With a prefix, output and tokens are those after it;
      without one, its result is None.
    step: see `GreedyDecoding.step_hook`.
    row: (results of `step` as [B, T] arrays, bool [B, T] mask of a row's steps)
      -> a pytree of [B, ...] arrays.
    scores_prompt: whether `prompt` computes logits of every token, which count
      as operations in the progress bar.
  """

  prefix: PrefixHook | None = None
  prompt: PromptHook | None = None
  step: Callable[[jax.Array, jax.Array], Any] | None = None
  row: RowHook | None = None
  scores_prompt: bool = False


@dataclasses.dataclass(frozen=True)
class Programs:
  """The functions for one model structure; every method is pure."""

  graph: nnx.GraphDef
  mesh: jax.sharding.Mesh
  decoding: GreedyDecoding
  hooks: Hooks

  def read_prefixes(
    self, weights: nnx.State, tokens_NxP: jax.Array, mask_NxP: jax.Array
  ) -> Prefixes:
    """Reads what prompts start with."""
    prefixes = Prefixes.read(
      nnx.merge(self.graph, weights),
      tokens_NxP,
      mask_NxP,
      self.hooks.prefix,
      self.decoding.layer,
    )
    return Prefixes(
      self._placed(prefixes.kv_cache), self._replicated(prefixes.found)
    )

  def read(
    self,
    weights: nnx.State,
    prefixes: Prefixes | None,
    tokens_BxL: jax.Array,
    segments_BxL: jax.Array,
    num_segments: int,
  ) -> Any:
    """Returns the results of the prompt hook for packed rows, see `packing`.

    All rows follow the first prefix, if there is one.
    """
    decoder = nnx.merge(self.graph, weights)
    cache = cache_after(
      prefixes, jnp.zeros(len(tokens_BxL), jnp.int32), tokens_BxL
    )
    output = decoder.packed(
      tokens_BxL, segments_BxL, cache, layer=self.decoding.layer
    )
    mask_BxSxL = sequence_masks(segments_BxL, num_segments)
    return self._run_prompt_hook(
      decoder, output, tokens_BxL, mask_BxSxL, prefixes
    )

  def prefill(
    self,
    weights: nnx.State,
    prefixes: Prefixes | None,
    prefix_B: jax.Array,
    tokens_BxL: jax.Array,
    segments_BxL: jax.Array,
    scored: tuple[jax.Array, jax.Array] | None,
    num_prompts: int,
  ) -> tuple[Prefilled, Any]:
    """Returns packed prompts to continue, and the results of the prompt hook.

    If `scored` gives how many last tokens of each sequence [B, S] are targets,
    and a token [B, S, 1] that follows them, their likelihoods take the hook's
    place.
    """
    decoder = nnx.merge(self.graph, weights)
    cache = cache_after(prefixes, prefix_B, tokens_BxL)
    prefilled, output = self.decoding.prefill(
      decoder,
      tokens_BxL,
      segments_BxL,
      num_prompts,
      cache,
      scored[0] if scored else None,
    )
    mask_BxSxL = sequence_masks(segments_BxL, num_prompts)
    if scored:
      found = self._replicated(
        row_likelihood(
          decoder, output.hidden_BxLxD, tokens_BxL, mask_BxSxL, *scored
        )
      )
    else:
      found = self._run_prompt_hook(
        decoder, output, tokens_BxL, mask_BxSxL, prefixes
      )
    return self._placed(prefilled), found

  def init_state(
    self, weights: nnx.State, num_slots: int, prompt_length: int
  ) -> DecodeState:
    """Returns empty slots."""
    decoder = nnx.merge(self.graph, weights)
    return self._placed(
      self.decoding.init_state(decoder, num_slots, prompt_length)
    )

  def insert(
    self, state: DecodeState, prefilled: Prefilled, slot_BxS: jax.Array
  ) -> DecodeState:
    """See `GreedyDecoding.insert`."""
    # Once, instead of for each prompt: it may go to any device's slots.
    prefilled = self._placed(prefilled, rows='gathered')
    return self._placed(self.decoding.insert(state, prefilled, slot_BxS))

  def resize(
    self, state: DecodeState, slot_M: jax.Array, prompt_length: int
  ) -> DecodeState:
    """See `GreedyDecoding.resize`."""
    return self._placed(self.decoding.resize(state, slot_M, prompt_length))

  def decode_until(
    self,
    weights: nnx.State,
    state: DecodeState,
    stopped_B: jax.Array,
    num_active: jax.Array,
    max_steps: jax.Array,
  ) -> tuple[DecodeState, dict[str, Any]]:
    """Decodes until few rows are active; also returns the rows for the host.

    Args:
      weights: weights of the model.
      state: the rows.
      stopped_B: rows that the host has ended.
      num_active: stops once no more rows than this are active.
      max_steps: number of steps at most.
    """
    decoder = nnx.merge(self.graph, weights)
    state = dataclasses.replace(state, active_B=state.active_B & ~stopped_B)
    state, steps = self.decoding.decode_until(
      decoder, state, num_active, max_steps
    )
    step_T = jnp.arange(self.decoding.max_new_tokens)
    step_BxT = step_T < state.num_tokens_B[:, None]
    hook = self.hooks.row
    return self._placed(state), self._replicated(
      {
        'steps': steps,
        'active': state.active_B,
        'num_tokens': state.num_tokens_B,
        'tokens': state.tokens_BxT,
        'found': hook(state.observed, step_BxT) if hook else None,
      }
    )

  def _run_prompt_hook(
    self,
    decoder: Decoder,
    output: Output,
    tokens_BxL: jax.Array,
    mask_BxSxL: jax.Array,
    prefixes: Prefixes | None,
  ) -> Any:
    if self.hooks.prompt is None:
      return None
    before = prefixes.found if prefixes else None
    return self._replicated(
      self.hooks.prompt(decoder, output, tokens_BxL, mask_BxSxL, before)
    )

  def _placed(self, state: T, rows: str = 'batch') -> T:
    """Shards rows over the mesh as batches are, and heads as weights are."""

    def place(x: jax.Array) -> jax.Array:
      axes = (rows, 'kv_heads', 'length', 'head_dim')[: x.ndim]
      if x.ndim == 2:
        axes = (rows, 'length')
      sharding = mesh_lib.sharding(self.mesh, axes, x.shape)
      return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(place, state)

  def _replicated(self, tree: Any) -> Any:
    return jax.lax.with_sharding_constraint(
      tree, jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
    )


def cache_after(
  prefixes: Prefixes | None, prefix_B: jax.Array, tokens_BxL: jax.Array
) -> KVCache | None:
  """A cache for rows of tokens that follow their prefixes.

  Args:
    prefixes: what has been read; None: rows have no prefix, and need no cache.
    prefix_B: the prefix of each row.
    tokens_BxL: the rows without their prefixes.
  """
  if prefixes is None:
    return None
  return prefixes.extended(prefix_B, tokens_BxL.shape[1])


class CompiledPrograms:
  """`Programs` jitted; buffers that are replaced are donated."""

  def __init__(self, programs: Programs):
    """Compiles nothing yet."""
    self.max_new_tokens = programs.decoding.max_new_tokens
    self.end_ids = frozenset(programs.decoding.end_ids)
    self.scores_prompt = programs.hooks.scores_prompt
    self.read_prefixes = Compiled(jax.jit(programs.read_prefixes))
    self.read = Compiled(jax.jit(programs.read, static_argnums=4))
    self.prefill = Compiled(jax.jit(programs.prefill, static_argnums=6))
    self.decode_until = Compiled(
      jax.jit(programs.decode_until, donate_argnums=1)
    )
    self.init_state = Compiled(
      jax.jit(programs.init_state, static_argnums=(1, 2))
    )
    self.insert = Compiled(jax.jit(programs.insert, donate_argnums=0))
    self.resize = Compiled(jax.jit(programs.resize, static_argnums=2))

  @property
  def num_programs(self) -> int:
    """Programs compiled so far to read prompts and to decode."""
    compiled = (self.read_prefixes, self.read, self.prefill, self.decode_until)
    return sum(function.num_programs for function in compiled)
