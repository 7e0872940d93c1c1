"""Times train steps of compressed networks in turns with the dense one, and updates of masks.

Question: how much slower does a network train while it is pruned or rounded?
Papers: none; toolkits seldom say.
Command: ./launch.sh compressed_step
Expected: experiments/results/compressed_step.csv as committed, for that machine.
Cost: three minutes on 2 cores with nothing else running. Data are made up, nothing is downloaded.

A call has several steps and takes its turn in every round; a ratio is of calls of one round.
`sentences` has the table of words and the lengths of a set of short reviews. Masks are updated 21
times in a run, whatever its length; their share is that of all updates in a run of 500 steps, the
first of which meet a network that is whole.
"""

import pathlib
import statistics
import sys
import time

from absl import flags as absl_flags

from lepton_jax import flags

FLAGS = absl_flags.FLAGS
RESULTS = pathlib.Path(__file__).parent / 'results' / 'compressed_step.csv'
BATCH, STEPS, RUN = 64, 10, 500
WORDS = 17_000
NETWORKS = {'lenet5': ('lenet5', (28, 28, 1), {}), 'resnet8': ('resnet8', (32, 32, 3), {}),
            'rows of digits': ('lstm_classifier', (28, 28, 1), {}),
            'sentences': ('lstm_classifier', (24,), dict(embedding=300, dropout=0.5))}
ROUNDED = dict(quantize_weight_bits=4, quantize_activation_bits=8)
SPARSE = dict(prune_sparsity=0.8)
SETTINGS = {'dense': {}, '80 % sparse': SPARSE, 'W4': dict(quantize_weight_bits=4),
            'W4 A8': ROUNDED, 'W4 A8 by LSQ': dict(ROUNDED, quantize_weights='lsq'),
            '80 % sparse, W4 A8': SPARSE | ROUNDED}
RECURRENT = {'W4 A8, gates 8': dict(ROUNDED, quantize_gate_bits=8)}


def main(config):
  del config
  from lepton_jax import machine
  from lepton_jax.report import markdown
  lines = []
  for network, (model, shape, own) in NETWORKS.items():
    settings = SETTINGS | (RECURRENT if model.startswith('lstm') else {})
    timed = {name: Contestant(model, shape, own | options) for name, options in settings.items()}
    for _ in range(FLAGS.rounds):
      for contestant in timed.values():
        contestant.turn()
    dense = timed['dense'].times
    for name, contestant in timed.items():
      ratios = [mine / other for mine, other in zip(contestant.times, dense)]
      low, _, high = statistics.quantiles(ratios, n=4)
      line = dict(network=network, setting=name, ms=1e3 * statistics.median(contestant.times),
                  ratio=statistics.median(ratios), low=low, high=high, update_ms='',
                  update_share='', rounds=FLAGS.rounds, batch=BATCH, run=RUN,
                  processor=machine.processor(), cores=machine.cores(),
                  git_revision=machine.git_revision())
      if updates := contestant.updates:
        whole = RUN * statistics.median(contestant.times) + sum(updates)
        line |= dict(update_ms=1e3 * statistics.mean(updates), update_share=sum(updates) / whole)
      lines.append(line)
      print(f'{network}, {name}: {line["ms"]:.2f} ms, {line["ratio"]:.2f} of dense', flush=True)
  markdown.write_rows(FLAGS.output, lines)
  return 0


class Contestant:
  """One network with its options, which are in force from the first step on."""

  def __init__(self, model, shape, options):
    import jax
    import numpy as np

    from experiments.peers.lepton import made_up
    from lepton_jax import assemble, machine
    from lepton_jax.config import Config
    from lepton_jax.train import parallel
    rng, text = np.random.default_rng(0), len(shape) == 1
    inputs = rng.integers(2, WORDS, (BATCH, *shape)).astype(np.int32) if text else (
        rng.normal(size=(BATCH, *shape)).astype(np.float32))
    data = made_up(inputs, rng.integers(0, 2, BATCH).astype(np.int32), 2,
                   tuple(map(str, range(WORDS))) if text else ())
    # All data are one batch, so an epoch is a step.
    config = Config().replace(model=model, batch_size=BATCH, buckets=1, epochs=RUN, prune_begin=0.0,
                              quantize_begin=0.0, **options)
    machine.start(config.run)
    assembly = assemble.build(config, data)
    layout = parallel.make_parallel('jit', BATCH)
    hooks = assembly.make_hooks(layout.put_examples, layout.rows, layout.predict)
    self._wait = jax.block_until_ready
    self._state = layout.put_state(assembly.state)
    self.updates = []
    for hook in hooks:  # ranges are set at the first step, and what hooks call is compiled
      self._state = hook(self._state, 0)
    if config.prune.prune_sparsity:
      self.prune(hooks[0])
    self._step = layout.step(assembly.train_step(layout.axis), STEPS)
    self._batches = layout.put_batches([assembly.batches.at(0)] * STEPS)
    self.times = []
    self.turn()
    self.times.clear()

  def turn(self):
    """Takes STEPS steps and notes the seconds of each."""
    began = time.perf_counter()
    self._state, _ = self._wait(self._step(self._state, self._batches))
    self.times.append((time.perf_counter() - began) / STEPS)

  def prune(self, hook):
    """Updates masks as in a run, up to its last ones, and notes the seconds of each update."""
    for step in filter(hook.due, range(RUN)):
      began = time.perf_counter()
      self._state = self._wait(hook(self._state, step))
      self.updates.append(time.perf_counter() - began)


if __name__ == '__main__':
  absl_flags.DEFINE_integer('rounds', 11, 'turns of each contestant', lower_bound=2)
  absl_flags.DEFINE_string('output', str(RESULTS), 'CSV file to write')
  sys.exit(flags.run(main, __doc__, ('rounds', 'output')))
