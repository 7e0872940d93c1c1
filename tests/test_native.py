"""The compiled library of CPU layers: found, made once, or missing with a reason."""

import os
import subprocess
import sys

import pytest

from lepton_jax.layers.native import library
from tests import LONG

CODE = '''
import jax.numpy as jnp
from lepton_jax.layers import convolve, platform
y = convolve.convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5)), None, (1, 1), 'VALID', 1)
print(platform.describe('auto', 'float32'), '|', y.sum())
'''


def start(cache, **environment):
  environment = dict(os.environ, XDG_CACHE_HOME=str(cache), **environment)
  return subprocess.Popen([sys.executable, '-c', CODE], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(isinstance(library.status(), library.Missing), reason='no oneDNN here')
@pytest.mark.skipif(not LONG, reason='LEPTON_LONG_TESTS=1 asks for it')
def test_two_processes_make_it_at_once_and_a_third_finds_it(tmp_path):
  both, told_once = [start(tmp_path) for _ in range(2)], []
  for process in both:
    answer, told = process.communicate(timeout=300)
    assert answer.startswith('oneDNN') and answer.strip().endswith('| 360.0'), told
    told_once.append(told.count('compiling the CPU layers for this machine, once'))
  assert sorted(told_once) == [0, 1]  # the other waits
  folder = tmp_path / 'lepton_jax' / 'native'
  assert [path.name for path in folder.iterdir()] == [f'{library.opened().digest}.so']
  answer, told = start(tmp_path).communicate(timeout=300)
  assert answer.startswith('oneDNN') and 'compiling' not in told


@pytest.mark.parametrize('compiler, reason', [
    ('', 'a C++ compiler would make them faster'),
    ('/bin/false', '/bin/false could not compile them'),
])
def test_without_a_compiler_that_works_xla_computes_the_same(tmp_path, compiler, reason):
  if isinstance(library.status(), library.Missing):
    reason = str(library.status())
  answer, _ = start(tmp_path, CXX=compiler, PATH='').communicate(timeout=300)
  assert answer.startswith(f'XLA; {reason}') and answer.strip().endswith('| 360.0')


TRAINING = '''
import os, sys
os.sched_setaffinity(0, set(map(int, sys.argv[1].split(','))))
from lepton_jax import run
from lepton_jax.config import Config
from tests import LONG
common = dict(dataset='digits', epochs=1, train_limit=256, runs_dir=sys.argv[2], tensorboard=False,
              pictures=False, parallel='jit')
for options in (dict(model='lenet5', norm='batch', image_size=20),
                dict(model='lstm_classifier', hidden=16)):
  print(run.train(Config().replace(**common, **options), quiet=True)['parameters_sha256'])
'''


@pytest.mark.skipif(not LONG, reason='long form')
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='there is one core')
def test_training_gives_the_same_bits_on_one_core_and_on_two(tmp_path):
  cores = [str(core) for core in sorted(os.sched_getaffinity(0))[:2]]
  command = [sys.executable, '-c', TRAINING]
  both = [subprocess.Popen([*command, where, str(tmp_path / where)], stdout=subprocess.PIPE,
                           text=True)
          for where in (cores[0], ','.join(cores))]
  one, two = (process.communicate(timeout=300)[0].split() for process in both)
  assert len(one) == 2 and one == two
