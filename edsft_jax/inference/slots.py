"""The slots of a worker's batch: which prompts they hold, which have ended."""

from collections.abc import Callable, Collection, Sequence
import dataclasses
from typing import Any

from flax import nnx
import jax
import numpy as np

from edsft_jax.inference.decoding import DecodeState, Prefilled
from edsft_jax.inference.packing import Packed
from edsft_jax.inference.programs import CompiledPrograms
from edsft_jax.inference.shapes import BatchSizes

_EMPTY = -1
# Decode steps between the host's checks for stop strings.
_STEPS_PER_STOP_CHECK = 8


@dataclasses.dataclass(frozen=True)
class Stop:
  """Stop strings.

  Attributes:
    strings: a continuation ends at the first one that occurs in it.
    decode: ids -> text.
  """

  strings: tuple[str, ...]
  decode: Callable[[Sequence[int]], str]

  def cut(self, text: str) -> str:
    """The text before the first stop string."""
    found = [at for s in self.strings if (at := text.find(s)) >= 0]
    return text[: min(found)] if found else text

  def ends(self, ids: Sequence[int]) -> bool:
    """Whether the text of these ids contains a stop string."""
    text = self.decode(ids)
    return any(string in text for string in self.strings)

  def num_tokens(self, ids: Sequence[int]) -> int:
    """The number of ids up to the first complete stop string."""
    low, high = 0, len(ids)
    # Text only grows with more ids, so the shortest prefix can be bisected.
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (low, middle) if self.ends(ids[:middle]) else (middle, high)
    return high


@dataclasses.dataclass(frozen=True)
class Ended:
  """Rows that have ended, taken out of their slots.

  Attributes:
    indices: indices of their prompts.
    tokens: the new tokens of each, including the one that ended it.
    stopped: whether an end id or a stop string ended it, not the length limit.
    found: the results of the row hook, [rows, ...].
    steps: decode steps since the previous Ended.
    num_slots: slots of the batch.
    cache_length: entries per slot.
  """

  indices: list[int]
  tokens: list[np.ndarray]
  stopped: list[bool]
  found: Any
  steps: int
  num_slots: int
  cache_length: int


class Slots:
  """A DecodeState on the device; the host knows which slot has which prompt.

  `reserve`, `insert` and `decode_until` work on the slots in place.
  """

  def __init__(
    self,
    programs: CompiledPrograms,
    weights: nnx.State,
    sizes: BatchSizes,
    stop: Stop | None = None,
    known: Collection[int] = (),
    pays_off: Callable[[int, int, int, int], bool] = lambda *_: False,
  ):
    """Allocates nothing yet.

    Args:
      programs: the compiled programs.
      weights: weights of the model.
      sizes: the number of slots.
      stop: strings that end a continuation.
      known: prompts whose continuations are known already, by index.
      pays_off: (slots, fewer slots, cache entries per slot, steps left at most)
        -> whether moving to fewer slots takes less time than it saves.
    """
    self._programs = programs
    self._weights = weights
    self._sizes = sizes
    self._stop = stop
    self._known = known
    self._pays_off = pays_off
    self._state: DecodeState | None = None
    self._cache_length = 0
    self._occupant = np.zeros(0, int)
    # Rows that the host has ended but the device still considers active.
    self._stopped = np.zeros(0, bool)
    # New tokens of each slot's row when the host last looked.
    self._num_tokens = np.zeros(0, int)

  @property
  def num_active(self) -> int:
    """Rows that have not ended."""
    return int(np.sum(self._occupant != _EMPTY))

  @property
  def _steps_left(self) -> int:
    """Steps until the last active row ends, at most."""
    most = self._programs.max_new_tokens
    return most - int(self._num_tokens[self._occupant != _EMPTY].min())

  def reserve(self, cache_length: int) -> None:
    """Makes slots for prompts up to this length; active rows move there."""
    if cache_length == self._cache_length:
      return
    self._cache_length = cache_length
    num_slots = self._sizes.num_slots(cache_length)
    if self._state is None or not self.num_active:
      self._state = None  # Frees the memory for the new state.
      self._state = self._programs.init_state(
        self._weights, num_slots, cache_length
      )
      self._occupant = np.full(num_slots, _EMPTY)
      self._stopped = np.zeros(num_slots, bool)
      self._num_tokens = np.zeros(num_slots, int)
      return
    self._move(num_slots)

  def _move(self, num_slots: int) -> None:
    """Moves the active rows to this many slots of the present length."""
    source = np.full(num_slots, _EMPTY, np.int32)
    occupied = np.flatnonzero(self._occupant != _EMPTY)
    source[: len(occupied)] = occupied
    self._occupant = np.where(source != _EMPTY, self._occupant[source], _EMPTY)
    self._stopped = np.zeros(num_slots, bool)
    self._num_tokens = np.where(source != _EMPTY, self._num_tokens[source], 0)
    self._state = self._programs.resize(self._state, source, self._cache_length)

  def insert(self, packed: Packed, prefilled: Prefilled) -> None:
    """Puts packed prompts into free slots, except those that are known."""
    new = [
      (index, place)
      for index, *place in zip(packed.indices, *packed.places, strict=True)
      if index not in self._known
    ]
    indices = [index for index, _ in new]
    free = np.flatnonzero(self._occupant == _EMPTY)[: len(indices)]
    slot_BxS = np.full(prefilled.token_BxS.shape, len(self._occupant), np.int32)
    slot_BxS[tuple(zip(*(place for _, place in new), strict=True))] = free
    self._state = self._programs.insert(self._state, prefilled, slot_BxS)
    self._occupant[free] = indices
    self._num_tokens[free] = 1
    self._stopped[free] = False

  def compile(self) -> None:
    """Compiles the program that decodes, unless it is known."""
    if not self._programs.decode_until.num_programs:
      self._decode(num_active=0)  # No row is active, so there are no steps.

  def decode_until(self, num_active: int) -> list[Ended]:
    """Decodes until no more than this many rows are active.

    Returns:
      The rows that have ended; in several parts if there are stop strings.
    """
    result = []
    while self.num_active > num_active:
      result.append(self._decode_some(num_active))
    return result

  def finish(self) -> list[Ended]:
    """Decodes until all rows have ended, the last ones in fewer slots.

    A decode step also computes empty slots. If one row takes many more steps
    than the others, these would cost as much as those of a full batch.

    Returns:
      The rows that have ended.
    """
    result = []
    while self.num_active:
      num_slots = len(self._occupant)
      fewer = self._sizes.fewer_slots(num_slots)
      cache_length = self._cache_length + self._programs.max_new_tokens
      if not self._pays_off(num_slots, fewer, cache_length, self._steps_left):
        fewer = 0
      elif self.num_active <= fewer:
        self._move(fewer)
        continue
      result.append(self._decode_some(fewer))
    return result

  def _decode_some(self, num_active: int) -> Ended:
    """Decodes until few rows are active, or it is time to look for stops."""
    now = jax.device_get(self._decode(num_active))
    self._find_stops(now)
    ended = self._remove_ended(now)
    self._num_tokens = np.array(now['num_tokens'])
    return ended

  def _decode(self, num_active: int) -> dict[str, Any]:
    self._state, now = self._programs.decode_until(
      self._weights,
      self._state,
      self._stopped,
      np.int32(num_active),
      np.int32(_STEPS_PER_STOP_CHECK if self._stop else 2**30),
    )
    return now

  def _find_stops(self, now: dict[str, Any]) -> None:
    """Marks rows whose text contains a stop string."""
    if self._stop is not None:
      for slot in np.flatnonzero(self._occupant != _EMPTY):
        ids = now['tokens'][slot, : now['num_tokens'][slot]].tolist()
        self._stopped[slot] = self._stop.ends(ids)

  def _remove_ended(self, now: dict[str, Any]) -> Ended:
    occupied_B = self._occupant != _EMPTY
    slots = np.flatnonzero(occupied_B & (~now['active'] | self._stopped))
    indices = self._occupant[slots].tolist()
    self._occupant[slots] = _EMPTY
    tokens, stopped = [], []
    for slot in slots:
      ids = now['tokens'][slot, : now['num_tokens'][slot]]
      if self._stop is not None and self._stopped[slot]:
        ids = ids[: self._stop.num_tokens(ids.tolist())]
      tokens.append(ids)
      stopped.append(
        bool(self._stopped[slot]) or int(ids[-1]) in self._programs.end_ids
      )
    return Ended(
      indices=indices,
      tokens=tokens,
      stopped=stopped,
      found=jax.tree.map(lambda x: x[slots], now['found']),
      steps=int(now['steps']),
      num_slots=len(self._occupant),
      cache_length=self._cache_length + self._programs.max_new_tokens,
    )
