"""The learning rate of every optimizer step."""

from collections.abc import Callable, Mapping
import math

import numpy as np

# Fewer steps would take Adam's first updates, which all have the size of the
# learning rate, at the peak.
_MIN_WARMUP_STEPS = 2

# Name -> factor of the peak, by the share of the steps after warm-up that are
# done.
SCHEDULES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
  'cosine': lambda done: 0.5 * (1 + np.cos(np.pi * done)),
  'linear': lambda done: 1 - done,
  'constant': np.ones_like,
}

# Peak rate of a method, unless finetuning.learning_rate sets one. Updates of
# all weights need smaller ones than updates of adapters, which start at zero.
METHOD_RATES: Mapping[str, float] = {'lora': 1e-3, 'full': 1e-4}


def learning_rates(
  schedule: str, peak: float, num_steps: int, warmup_fraction: float
) -> np.ndarray:
  """Linear warm-up to the peak, then the schedule; float32 [num_steps].

  No step has a rate of zero: the first is peak / warm-up steps, and a decay
  reaches zero one step after the last. Warm-up takes two steps at least, unless
  its fraction is zero.
  """
  warmup = 0
  if warmup_fraction:
    least = min(_MIN_WARMUP_STEPS, num_steps)
    warmup = max(math.ceil(warmup_fraction * num_steps), least)
  step = np.arange(num_steps)
  rising = (step + 1) / max(warmup, 1)
  falling = SCHEDULES[schedule]((step - warmup) / max(num_steps - warmup, 1))
  return np.where(step < warmup, rising, falling).astype(np.float32) * (
    np.float32(peak)
  )
