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
    prompt: (decoder, output of the forward pass, tokens [B, L], mask [B, L],
      the result of `prefix`) -> a pytree of [B, ...] arrays. With a prefix,
      output and tokens are those after it; without one, its result is None.
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
    prefix_B: jax.Array,
    tokens_BxL: jax.Array,
    mask_BxL: jax.Array,
  ) -> Any:
    """Returns the results of the prompt hook."""
    decoder = nnx.merge(self.graph, weights)
    cache = cache_after(prefixes, prefix_B, tokens_BxL)
    output = decoder(tokens_BxL, mask_BxL, cache, layer=self.decoding.layer)
    return self._run_prompt_hook(
      decoder, output, tokens_BxL, mask_BxL, prefixes
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
    if scored:
      found = row_likelihood(decoder, output.hidden_BxLxD, tokens_BxL, *scored)
      return self._placed(state), self._replicated(found)
    found = self._run_prompt_hook(
      decoder, output, tokens_BxL, mask_BxL, prefixes
    )
    return self._placed(state), found

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
    mask_BxL: jax.Array,
    prefixes: Prefixes | None,
  ) -> Any:
    if self.hooks.prompt is None:
      return None
    before = prefixes.found if prefixes else None
    return self._replicated(
      self.hooks.prompt(decoder, output, tokens_BxL, mask_BxL, before)
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
    self.read = Compiled(jax.jit(programs.read))
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


def target_likelihood(
  decoder: Decoder,
  hidden_BxLxD: jax.Array,
  tokens_BxL: jax.Array,
  num_targets_B: jax.Array,
  max_logits: int = MAX_LOGITS,
) -> dict[str, jax.Array]:
  """Scores the last tokens of each row, given those before them.

  Logits are computed for a block of positions at a time, from the end of the
  rows until every target is scored: [B, L, V] never exists.

  Args:
    decoder: the model.
    hidden_BxLxD: its hidden states.
    tokens_BxL: the rows, padded on the left.
    num_targets_B: how many last tokens of each row to score; the first token of
      a row cannot be scored, since nothing predicts it.
    max_logits: limit on the logits held at once, in floats.

  Returns:
    nll: float32 [B], the negative log-likelihood of a row's targets in nats.
    is_greedy: bool [B], whether each target is the likeliest token.
  """
  batch, length = tokens_BxL.shape
  floats = batch * decoder.config.vocab_size
  size = min(max(max_logits // floats, 1), length - 1)

  def add_block(
    block: jax.Array, sums: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    nll_B, is_greedy_B = sums
    # Position p predicts the token at p + 1.
    end = length - 1 - block * size
    start = jnp.maximum(end - size, 0)
    slice_block = jax.lax.dynamic_slice_in_dim
    hidden_BxPxD = slice_block(hidden_BxLxD, start, size, axis=1)
    target_BxP = slice_block(tokens_BxL, start + 1, size, axis=1)
    position_P = start + jnp.arange(size)
    first_B = length - 1 - num_targets_B
    counts_BxP = (position_P < end) & (position_P >= first_B[:, None])
    logits_BxPxV = decoder.logits(hidden_BxPxD)
    chosen_BxP = jnp.take_along_axis(
      logits_BxPxV, target_BxP[..., None], axis=-1
    )[..., 0]
    nll_BxP = jax.nn.logsumexp(logits_BxPxV, axis=-1) - chosen_BxP
    is_best_BxP = chosen_BxP >= jnp.max(logits_BxPxV, axis=-1)
    return (
      nll_B + jnp.sum(jnp.where(counts_BxP, nll_BxP, 0.0), axis=1),
      is_greedy_B & jnp.all(is_best_BxP | ~counts_BxP, axis=1),
    )

  num_blocks = -(-jnp.max(num_targets_B) // size)
  nothing = jnp.zeros(batch, jnp.float32), jnp.ones(batch, bool)
  nll_B, is_greedy_B = jax.lax.fori_loop(0, num_blocks, add_block, nothing)
  return {'nll': nll_B, 'is_greedy': is_greedy_B}


def row_likelihood(
  decoder: Decoder,
  hidden_BxLxD: jax.Array,
  tokens_BxL: jax.Array,
  num_scored_B: jax.Array,
  last_BxC: jax.Array,
) -> dict[str, jax.Array]:
  """Scores each row's last tokens, followed by each of C tokens.

  Args:
    decoder: the model.
    hidden_BxLxD: its hidden states.
    tokens_BxL: the rows, padded on the left.
    num_scored_B: how many last tokens of each row to score.
    last_BxC: tokens that may follow the row.

  Returns:
    nll: float32 [B, C], in nats.
    is_greedy: bool [B, C], whether each token is the likeliest one.
  """
  logits_BxV = decoder.logits(hidden_BxLxD[:, -1])
  chosen_BxC = jnp.take_along_axis(logits_BxV, last_BxC, axis=-1)
  nll_BxC = jax.nn.logsumexp(logits_BxV, axis=-1)[:, None] - chosen_BxC
  is_best_BxC = chosen_BxC >= jnp.max(logits_BxV, axis=-1)[:, None]
  if tokens_BxL.shape[1] == 1:  # Nothing comes before a target.
    return {'nll': nll_BxC, 'is_greedy': is_best_BxC}
  before = target_likelihood(decoder, hidden_BxLxD, tokens_BxL, num_scored_B)
  return {
    'nll': before['nll'][:, None] + nll_BxC,
    'is_greedy': before['is_greedy'][:, None] & is_best_BxC,
  }
