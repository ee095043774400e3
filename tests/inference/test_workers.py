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


def test_threads_of_a_queue_get_each_item_once():
  queue = workers.Queue(range(1000))
  taken: list[list[int]] = [[], []]

  def work(number, unless_stopped):
    taken[number] += unless_stopped(queue.take(number))

  workers.run(work, 2)
  assert sorted(taken[0] + taken[1]) == list(range(1000))
  assert taken[0] == sorted(taken[0])
  assert taken[1] == sorted(taken[1], reverse=True)
