"""Worker threads: one compilation for all, and one end for all."""

from concurrent import futures
import time

import jax
import numpy as np

from edsft_jax.inference import workers


def test_threads_do_not_compile_the_same_twice():
  traced = []

  def double(x):
    traced.append(x.shape)
    time.sleep(0.05)
    return 2 * x

  compiled = workers.Compiled(jax.jit(double))
  with futures.ThreadPoolExecutor(4) as pool:
    sizes = [3, 3, 3, 4]
    doubled = list(pool.map(compiled, map(np.ones, sizes)))
  assert [len(x) for x in doubled] == sizes
  assert sorted(traced) == [(3,), (4,)]
  assert compiled.num_programs == 2
