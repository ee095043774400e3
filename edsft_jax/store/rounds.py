"""What the pool was before prompts were appended to it."""

import dataclasses

from edsft_jax.store.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class Round:
  """An earlier pool; its prompts are the first ones of the current pool.

  Attributes:
    prompts: how many it had.
    hash: of its pool.parquet.
  """

  prompts: int
  hash: str


def earlier_rounds(manifest: Manifest) -> list[Round]:
  """The earlier pools, oldest first; none if nothing was appended."""
  return [Round(**r) for r in manifest.counts('pool').get('rounds', [])]


def round_of(manifest: Manifest, pool_hash: str) -> Round | None:
  """The earlier pool with this hash, if there was one."""
  rounds = earlier_rounds(manifest)
  return next((r for r in rounds if r.hash == pool_hash), None)
