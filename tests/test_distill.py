"""Learning from the answers of a finished run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import assemble, distill, folder, other_runs, run, trees
from lepton_jax.errors import UserError
from tests import LONG


def test_the_term_by_hand():
  """T^2 times the divergence of softened answers; two classes by one logit are the same."""
  logits, teacher = np.array([[1.0, -1.0, 0.5]]), np.array([[0.0, 2.0, -1.0]])
  p = np.exp(teacher / 3) / np.exp(teacher / 3).sum()
  q = np.exp(logits / 3) / np.exp(logits / 3).sum()
  label = jnp.zeros(1, jnp.int32)
  found = distill.term(jnp.float32(logits), jnp.float32(teacher), label, 3.0)
  np.testing.assert_allclose(found, [9 * np.sum(p * np.log(p / q))], rtol=1e-5)
  one = distill.term(jnp.float32([[0.7]]), jnp.float32([[-0.2]]), label, 2.0)
  two = distill.term(jnp.float32([[0, 0.7]]), jnp.float32([[0, -0.2]]), label, 2.0)
  np.testing.assert_allclose(one, two, rtol=1e-5)
  assert float(distill.term(jnp.float32(teacher), jnp.float32(teacher), label, 4.0)[0]) == (
      pytest.approx(0, abs=1e-6))


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  from lepton_jax.config import Config
  config = Config().replace(model='mlp', dataset='digits', epochs=2, batch_size=32, seed=3,
                            tensorboard=False, pictures=False, quantize_weight_bits=8,
                            runs_dir=str(tmp_path_factory.mktemp('teacher')))
  run.train(config.check(), quiet=True)
  return f'{config.run.runs_dir}/{config.name()}'


def test_the_step_sees_what_the_teacher_answers(small, teacher):
  """Inputs are scaled anew for it: its training part, and so its scale, is another.

  Answers to inputs that no augmentation changes are computed once, before the training.
  """
  config = small.replace(teacher=teacher, distill=1.0)
  data = assemble.load_data(config)
  assembly = assemble.build(config, data, **other_runs.read(config, data))
  batch = assembly.batches.at(0)
  prepare = assembly.train_step.args[0].prepare
  known, wanted = batch.pop('teacher'), folder.load(teacher).outputs(batch['inputs'])
  found = prepare(batch, jax.random.key(0), assembly.state.hparams, {})['teacher']
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(known, wanted, rtol=1e-4, atol=1e-4)
  changed = config.replace(augment_crop=1)
  assert 'teacher' not in assemble.build(changed, data, **other_runs.read(
      changed, data)).batches.at(0)


def test_a_strength_of_zero_is_absent_and_a_strong_one_follows_the_teacher(small, teacher,
                                                                           tmp_path):
  config = small.replace(runs_dir=str(tmp_path), epochs=8, width=0.5, learning_rate=3e-3)
  inputs = folder.load(teacher).data.splits['test'][0]
  theirs = folder.load(teacher).predict(inputs)
  agreement = []
  for options in ({}, dict(teacher=teacher, distill=20.0)):
    one = config.replace(**options)
    run.train(one.check(), quiet=True)
    mine = folder.load(str(tmp_path / one.name())).predict(inputs)
    agreement.append(np.mean(mine == theirs))
  assert agreement[1] > agreement[0]


def test_teachers_that_cannot_teach_are_refused(small, teacher, tmp_path):
  for options, words in (
      (dict(teacher=teacher), 'both or neither'), (dict(distill=1.0), 'both or neither'),
      (dict(teacher=teacher, distill=1.0, dataset='mnist5k'), 'other input shape'),
      (dict(teacher=teacher, distill_hints=1.0), 'both or neither'),
      (dict(teacher=teacher, distill_hints=1.0, distill_layers='conv'), 'matches nothing. Paths'),
      (dict(teacher=teacher, distill_hints=1.0, distill_layers='dense1', width=0.5),
       'dense1 have other widths'),
      (dict(teacher=str(tmp_path), distill=1.0), 'not a run folder')):
    config = small.replace(**options)
    with pytest.raises(UserError, match=words):
      data = assemble.load_data(config)
      assemble.build(config, data, **other_runs.read(config, data))


def test_hints_by_hand():
  """Equal widths: relative squared distance; others: between maps of where layers are active."""
  mine, theirs = np.array([[3.0, 0.0]]), np.array([[1.0, 2.0]])
  far = distill.hint(dict(a=jnp.ones((1, 4))), dict(a=jnp.zeros((1, 4))))
  assert float(far[0]) == pytest.approx(1 / distill.LEAST)
  found = distill.hint(dict(a=jnp.float32(mine)), dict(a=jnp.float32(theirs), b=None))
  np.testing.assert_allclose(found, [(4 + 4) / 5], rtol=1e-6)
  wide = np.array([[[1.0, 1.0, 1.0], [0.0, 2.0, 0.0]]])  # active by 3 and 4: 0.6, 0.8 of length 1
  narrow = np.array([[[0.0, 1.0], [0.0, 0.0]]])
  found = distill.hint(dict(a=jnp.float32(narrow), b=jnp.float32(wide)),
                       dict(a=jnp.float32(wide), b=jnp.float32(wide)))
  np.testing.assert_allclose(found, [(0.4 ** 2 + 0.8 ** 2) / 2], rtol=1e-6)
  # Of steps that do not exist nothing counts, whatever is there.
  exists = jnp.array([[True, False]])
  for own in (wide, narrow):
    other = own.copy()
    other[0, 1] += 7.0
    assert distill.hint(dict(a=jnp.float32(other)), dict(a=jnp.float32(own)), exists) == 0


@pytest.mark.parametrize('model, layer, options', [
    ('mlp', 'dense1', {}), *([('lstm_classifier', 'forward', dict(hidden=64))] if LONG else [])])
def test_hints_bring_a_layer_to_the_teacher_s(model, layer, options, small, tmp_path):
  config = small.replace(runs_dir=str(tmp_path), epochs=4, model=model)
  run.train(config.check(), quiet=True)
  place = str(tmp_path / config.name())
  other = config.replace(seed=1, teacher=place, **options)
  inputs, far = folder.load(place).data.splits['test'][0], []
  theirs = folder.load(place).activations(inputs)
  paths = [path for path in theirs if path.startswith(layer)]
  for learned in (dict(distill=1.0), dict(distill_hints=10.0, distill_layers=layer)):
    one = other.replace(**learned)
    run.train(one.check(), quiet=True)
    mine = folder.load(str(tmp_path / one.name())).activations(inputs)
    far.append(distill.hint({path: mine[path] for path in paths}, theirs).mean())
  assert far[1] < far[0] / 2


@pytest.mark.skipif(not LONG, reason='long form')
def test_a_run_goes_on_with_levels_and_ranges_that_it_asks_for_alike(small, tmp_path):
  """From a parent with the same options of rounding; with others they are set anew."""
  config = small.replace(runs_dir=str(tmp_path), epochs=1, quantize_weight_bits=3,
                         quantize_weights='cluster', quantize_activation_bits=8)
  run.train(config.check(), quiet=True)
  place = str(tmp_path / config.name())
  saved = folder.read_weights(place)[0]
  for bits, same in ((3, True), (4, False)):
    after = config.replace(init_from=place, quantize_weight_bits=bits)
    data = assemble.load_data(after)
    state = assemble.build(after, data, **other_runs.read(after, data)).state
    mine, theirs = trees.named(state.learned), trees.named(saved['learned'])
    assert mine.keys() == theirs.keys()
    equal = [np.array_equal(mine[name], theirs[name]) for name in mine if 'codebook' in name]
    assert all(equal) if same else not any(equal)
