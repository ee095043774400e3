"""Choose prompts from a feature matrix: arrays in, Selection out.

Needs only jax, numpy, and scipy, which comes with jax. README.md in this folder
explains the algorithms, their guarantees, and the letters in array names.
"""

from edsft_jax.selection.errors import SelectionError
from edsft_jax.selection.facility_location import facility_location
from edsft_jax.selection.gains_curves import (
  GainsCurves,
  KernelWidth,
  gains_curves,
  kernel_width,
)
from edsft_jax.selection.inputs import Features, Positions, Values
from edsft_jax.selection.k_center import k_center
from edsft_jax.selection.log_determinant import log_determinant
from edsft_jax.selection.ranking import random, random_matched, top
from edsft_jax.selection.result import MemoryUse, Selection
from edsft_jax.selection.similarity import Cosine, Rbf, Similarity
from edsft_jax.selection.tasks import cluster_tasks, task_diversity

__all__ = [
  'Cosine',
  'Features',
  'GainsCurves',
  'KernelWidth',
  'MemoryUse',
  'Positions',
  'Rbf',
  'Selection',
  'SelectionError',
  'Similarity',
  'Values',
  'cluster_tasks',
  'facility_location',
  'gains_curves',
  'k_center',
  'kernel_width',
  'log_determinant',
  'random',
  'random_matched',
  'task_diversity',
  'top',
]
