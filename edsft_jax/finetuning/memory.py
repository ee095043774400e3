"""How a step is divided, so that it fits into memory."""

from collections.abc import Iterator
import contextlib
import dataclasses

import jax
import ml_collections

from edsft_jax import errors, out_of_memory
from edsft_jax import mesh as mesh_lib
from edsft_jax.finetuning.batches import Layout

REMAT = ('none', 'layer')
# Default tokens, padding included, of a micro-batch per device. Larger
# micro-batches do not make products faster, but full finetuning adds the
# gradients of all weights once per micro-batch, so it uses larger ones on CPUs.
SLOTS_ON_CPU = {'lora': 1024, 'full': 2048}
SLOTS = 4096


@dataclasses.dataclass(frozen=True)
class MemoryOptions:
  """How a step is computed; edsft_jax/config.py documents each field.

  None changes a result beyond rounding.
  """

  micro_batch_size: int = 0
  remat: str = 'none'
  packing: bool = True

  @classmethod
  def of(cls, config: ml_collections.ConfigDict) -> 'MemoryOptions':
    """Those of config.finetuning."""
    names = (field.name for field in dataclasses.fields(cls))
    return cls(**{name: config[name] for name in names})

  def check(self) -> None:
    """Rejects values that have no meaning.

    Raises:
      InputError: naming the option.
    """
    if self.remat not in REMAT:
      raise errors.unknown(
        f'finetuning.remat {self.remat!r}', self.remat, REMAT
      )
    if self.micro_batch_size < 0:
      raise errors.InputError(
        f'finetuning.micro_batch_size is {self.micro_batch_size}: must be at '
        'least 1, or 0 for as many rows as the device computes well'
      )

  def remedies(self, micro_batch_size: str) -> list[str]:
    """What to use if there is too little memory; no result depends on it.

    Args:
      micro_batch_size: the setting for fewer rows; '': it would not help.
    """
    result = [micro_batch_size] if micro_batch_size else []
    if self.remat == 'none':
      result.append("finetuning.remat='layer'")
    return [*result, 'more devices with mesh.fsdp']

  @contextlib.contextmanager
  def exhausted_in_one_line(self, method: str) -> Iterator[None]:
    """Makes errors about too little memory name the options.

    Args:
      method: finetuning.method.

    Raises:
      InputError: in place of such an error.
    """
    try:
      yield
    except out_of_memory.ERRORS as error:
      if not out_of_memory.is_meant_by(error):
        raise
      fewer = 'finetuning.micro_batch_size=1'
      free = self.remedies('' if self.micro_batch_size == 1 else fewer)
      other = {
        'lora': 'a lower finetuning.lora_rank',
        'full': "finetuning.method='lora'",
      }[method]
      raise errors.InputError(
        f'finetuning runs out of memory: use {" or ".join(free)}, or remove '
        f'all cells and use {other}'
      ) from error

  def layout(self, mesh: jax.sharding.Mesh, method: str) -> Layout:
    """How examples become micro-batches on this mesh, by finetuning.method."""
    groups = mesh_lib.batch_multiple(mesh)
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    slots = SLOTS_ON_CPU[method] if on_cpu else SLOTS
    return Layout(
      packing=self.packing,
      max_rows=self.micro_batch_size,
      max_slots=0 if self.micro_batch_size else groups * slots,
      groups=groups,
    )
