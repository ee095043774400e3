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
from edsft_jax.inference.decoding import DecodeState, GreedyDecoding
from edsft_jax.inference.prefixes import Prefixes, PrefixHook
from edsft_jax.inference.workers import Compiled
from edsft_jax.models import Decoder, KVCache, Output

# Most logits held at once while given tokens are scored, in floats.
MAX_LOGITS = 2**22

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
    mask_BxL: jax.Array,
    scored: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[DecodeState, Any]:
    """Returns rows to continue, and the results of the prompt hook.

    If `scored` gives how many last tokens of each row [B] are targets, and a
    token [B, 1] that follows them, their likelihoods take the hook's place.
    """
    decoder = nnx.merge(self.graph, weights)
    cache = cache_after(prefixes, prefix_B, tokens_BxL)
    state, output = self.decoding.prefill(
      decoder, tokens_BxL, mask_BxL, cache, scored[0] if scored else None
    )
    mask_Bx1xL = mask_BxL[:, None]
    if scored:
      num_scored_B, last_Bx1 = scored
      found = row_likelihood(
        decoder,
        output.hidden_BxLxD,
        tokens_BxL,
        mask_Bx1xL,
        num_scored_B[:, None],
        last_Bx1[:, None],
      )
      found = self._replicated(found)
    else:
      found = self._run_prompt_hook(
        decoder, output, tokens_BxL, mask_Bx1xL, prefixes
      )
    return self._placed(state), jax.tree.map(lambda x_Bx1: x_Bx1[:, 0], found)

  def init_state(
    self, weights: nnx.State, num_slots: int, prompt_length: int
  ) -> DecodeState:
    """Returns empty slots."""
    decoder = nnx.merge(self.graph, weights)
    return self._placed(
      self.decoding.init_state(decoder, num_slots, prompt_length)
    )

  def insert(
    self, state: DecodeState, prefilled: DecodeState, slot_P: jax.Array
  ) -> DecodeState:
    """See `GreedyDecoding.insert`."""
    return self._placed(self.decoding.insert(state, prefilled, slot_P))

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

  def _placed(self, state: T) -> T:
    """Shards rows over the mesh as batches are, and heads as weights are."""

    def place(x: jax.Array) -> jax.Array:
      axes = ('batch', 'kv_heads', 'length', 'head_dim')[: x.ndim]
      if x.ndim == 2:
        axes = ('batch', 'length')
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
    self.prefill = Compiled(jax.jit(programs.prefill))
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


def sequence_masks(segments_BxL: jax.Array, num_segments: int) -> jax.Array:
  """Bool [B, S, L], true at the tokens of each sequence of packed rows."""
  segment_S = 1 + jnp.arange(num_segments)
  return segments_BxL[:, None] == segment_S[:, None]


def target_likelihood(
  decoder: Decoder,
  hidden_BxLxD: jax.Array,
  tokens_BxL: jax.Array,
  is_target_BxL: jax.Array,
  max_logits: int = MAX_LOGITS,
) -> dict[str, jax.Array]:
  """Scores tokens, given those before them.

  Logits are computed for a block of each row's targets at a time, until every
  target is scored: [B, L, V] never exists.

  Args:
    decoder: the model.
    hidden_BxLxD: its hidden states.
    tokens_BxL: the rows.
    is_target_BxL: the tokens to score; not the first one of a sequence, which
      nothing predicts.
    max_logits: limit on the logits held at once, in floats.

  Returns:
    nll: float32 [B, L], the negative log-likelihood of each target in nats, 0
      for other tokens.
    is_greedy: bool [B, L], whether a target is the likeliest token; true for
      other tokens.
  """
  batch, length = tokens_BxL.shape
  size = min(max(max_logits // (batch * decoder.config.vocab_size), 1), length)
  num_blocks = -(-jnp.max(jnp.sum(is_target_BxL, axis=1)) // size)
  # Each row's targets, then its other tokens, in blocks of one size.
  place_BxL = jnp.argsort(~is_target_BxL, axis=1, stable=True)
  place_BxT = jnp.pad(place_BxL, ((0, 0), (0, -length % size)), mode='edge')
  row_Bx1 = jnp.arange(batch)[:, None]

  def add_block(
    block: jax.Array, found: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    nll_BxL, is_greedy_BxL = found
    place_BxP = jax.lax.dynamic_slice_in_dim(
      place_BxT, block * size, size, axis=1
    )
    # The token before a target predicts it.
    before_BxPx1 = jnp.maximum(place_BxP - 1, 0)[..., None]
    logits_BxPxV = decoder.logits(
      jnp.take_along_axis(hidden_BxLxD, before_BxPx1, axis=1)
    )
    token_BxP = jnp.take_along_axis(tokens_BxL, place_BxP, axis=1)
    nll_BxP, is_best_BxP = _likelihood(logits_BxPxV, token_BxP[..., None])
    return (
      nll_BxL.at[row_Bx1, place_BxP].set(nll_BxP[..., 0]),
      is_greedy_BxL.at[row_Bx1, place_BxP].set(is_best_BxP[..., 0]),
    )

  nothing = jnp.zeros(place_BxL.shape), jnp.ones(place_BxL.shape, bool)
  nll_BxL, is_greedy_BxL = jax.lax.fori_loop(0, num_blocks, add_block, nothing)
  return {
    'nll': jnp.where(is_target_BxL, nll_BxL, 0.0),
    'is_greedy': is_greedy_BxL | ~is_target_BxL,
  }


def row_likelihood(
  decoder: Decoder,
  hidden_BxLxD: jax.Array,
  tokens_BxL: jax.Array,
  mask_BxSxL: jax.Array,
  num_scored_BxS: jax.Array,
  last_BxSxC: jax.Array,
) -> dict[str, jax.Array]:
  """Scores each sequence's last tokens, followed by each of C tokens.

  Args:
    decoder: the model.
    hidden_BxLxD: its hidden states.
    tokens_BxL: the rows.
    mask_BxSxL: the tokens of each sequence, which follow each other.
    num_scored_BxS: how many last tokens of each sequence to score; fewer than
      all.
    last_BxSxC: tokens that may follow the sequence.

  Returns:
    nll: float32 [B, S, C], in nats.
    is_greedy: bool [B, S, C], whether each token is the likeliest one.
  """
  position_L = jnp.arange(tokens_BxL.shape[1])
  end_BxSx1 = jnp.max(
    jnp.where(mask_BxSxL, position_L, 0), axis=-1, keepdims=True
  )

  def score_last(
    ends: tuple[jax.Array, jax.Array],
  ) -> tuple[jax.Array, jax.Array]:
    hidden_BxD, last_BxC = ends
    return _likelihood(decoder.logits(hidden_BxD), last_BxC)

  batch, num_sequences, _ = last_BxSxC.shape
  most = max(MAX_LOGITS // (batch * decoder.config.vocab_size), 1)
  ends_SxBx = jax.tree.map(
    lambda x_BxSx: x_BxSx.swapaxes(0, 1),
    (jnp.take_along_axis(hidden_BxLxD, end_BxSx1, axis=1), last_BxSxC),
  )
  nll_BxSxC, is_best_BxSxC = jax.tree.map(
    lambda x_SxBx: x_SxBx.swapaxes(0, 1),
    jax.lax.map(score_last, ends_SxBx, batch_size=min(most, num_sequences)),
  )
  is_target_BxSxL = mask_BxSxL & (
    position_L > end_BxSx1 - num_scored_BxS[..., None]
  )
  before = target_likelihood(
    decoder, hidden_BxLxD, tokens_BxL, jnp.any(is_target_BxSxL, axis=1)
  )
  nll_BxSx1 = jnp.sum(
    jnp.where(is_target_BxSxL, before['nll'][:, None], 0.0),
    axis=-1,
    keepdims=True,
  )
  is_greedy_BxSx1 = jnp.all(
    before['is_greedy'][:, None] | ~is_target_BxSxL, axis=-1, keepdims=True
  )
  return {
    'nll': nll_BxSx1 + nll_BxSxC,
    'is_greedy': is_greedy_BxSx1 & is_best_BxSxC,
  }


def _likelihood(
  logits_xV: jax.Array, tokens_xC: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Of each token, [..., C]: nats, and whether none is likelier."""
  chosen_xC = jnp.take_along_axis(logits_xV, tokens_xC, axis=-1)
  total_x1 = jax.nn.logsumexp(logits_xV, axis=-1, keepdims=True)
  return total_x1 - chosen_xC, chosen_xC >= jnp.max(
    logits_xV, axis=-1, keepdims=True
  )
