"""What devices send each other in a step: the gradient, and what is stated beside it."""

import os
import subprocess
import sys

import pytest

from lepton_jax import communication
from lepton_jax.communication import Collective
from lepton_jax.config import Config
from lepton_jax.errors import UserError
from lepton_jax.report import markdown
from tests import LONG
from tests.test_models import tiny_dataset

SHAPE, CLASSES, EXAMPLES = (16, 16, 1), 10, 4
PROGRAM = '''
HloModule jit_train_step
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}
ENTRY %main (x: f32[8,16]) -> f32[] {
  %all-reduce.1 = (f32[8,16]{1,0}, f32[]) all-reduce(%a, %b), channel_id=1, to_apply=%sum
  %all-gather = bf16[32,4]{1,0} all-gather(%c), dimensions={0}
  %fusion = f32[9]{0} fusion(%all-gather), calls=%f
}
'''


def step(model, devices, **options):
  config = Config().replace(model=model, batch_size=EXAMPLES, **options)
  found, parameters = communication.of_step(
      config, tiny_dataset(model, SHAPE, CLASSES, EXAMPLES), devices)
  return communication.summary(found, parameters), parameters


def test_a_cnn_sums_its_gradient_and_three_numbers_a_channel_of_batch_norm():
  options = dict(norm='batch', width=0.2)
  two, parameters = step('lenet5', 2, **options)
  four, _ = step('lenet5', 4, **options)
  assert two == four
  kernels = 25 * 4 + 25 * 4 * 10 + 10 * 100 + 100 * 10
  biases_and_norms = 4 + 10 + 100 + 10 + 2 * (4 + 10)
  assert two['gradient_bytes'] == sum(parameters) == 4 * (kernels + biases_and_norms)
  channels = 4 + 10
  loss_and_accuracy = 2
  assert two['summed_bytes'] == 4 * (3 * channels + loss_and_accuracy)
  assert (two['others'], two['other_bytes']) == ('', 0)


def test_an_lstm_sums_its_gradient_and_nothing_else():
  two, parameters = step('lstm_classifier', 2, hidden=8)
  four, _ = step('lstm_classifier', 4, hidden=8)
  assert two == four
  assert two == dict(all_reduces=1, gradient_bytes=sum(parameters), summed_bytes=8, others='',
                     other_bytes=0)


def test_operations_are_read_with_their_bytes():
  found = communication.collectives(PROGRAM)
  assert found == [Collective('all-reduce', (512, 4)), Collective('all-gather', (256,))]
  # Of the sums 512 bytes are the gradient of the one array of that size.
  assert communication.summary(found, (512, 512)) == dict(
      all_reduces=1, gradient_bytes=512, summed_bytes=4, others='1 all-gather', other_bytes=256)


@pytest.mark.parametrize('changed', [
    PROGRAM.replace('ROOT %c = f32[] add(', 'ROOT %c = f32[] all-reduce('),
    PROGRAM.replace('all-gather(%c)', 'all-gather-start(%c)')])
def test_operations_whose_bytes_a_step_are_unknown_are_refused(changed):
  with pytest.raises(ValueError, match='not known'):
    communication.collectives(changed)


def test_more_devices_than_there_are():
  with pytest.raises(UserError, match='--devices=8: there are 4'):
    step('lenet5', 8)


@pytest.mark.skipif(not LONG, reason='long form, where libtpu is installed')
def test_train_steps_compile_for_a_tpu_slice_and_send_the_gradient_alone(tmp_path):
  pytest.importorskip('libtpu')
  models = 'lenet5,lstm_classifier,lstm_lm,text_cnn'
  variables = dict(os.environ, TPU_SKIP_MDS_QUERY='1', JAX_PLATFORMS='cpu')
  subprocess.run([sys.executable, '-m', 'experiments.tpu_programs', f'--models={models}',
                  f'--output={tmp_path}/programs.csv'], env=variables, check=True)
  lines = markdown.rows(tmp_path / 'programs.csv')
  assert [line['model'] for line in lines] == models.split(',')
  assert {(line['chips'], line['all_reduces'], line['other_exchanges']) for line in lines} == {
      ('8', '1', '0')}
