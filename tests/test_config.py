import dataclasses
import json

import pytest
from absl import flags as absl_flags

from lepton_jax import config as config_lib
from lepton_jax import flags, help_text, registry
from lepton_jax.config import FIELDS, Config
from lepton_jax.errors import UserError


def parse(*arguments):
  values = absl_flags.FlagValues()
  flags.define(values)
  values(['program', *arguments])
  return flags.configuration(values)


def test_no_flags_give_the_defaults():
  assert parse() == Config()


def test_every_field_is_a_flag_and_survives_json():
  given = dict(model='resnet8', width=0.5, learning_rate=0.01, augment_flip=True, epochs=7,
               freeze='stage1')
  config = parse(*(f'--{name}={value}' for name, value in given.items()))
  assert {n: config.flat()[n] for n in given} == given
  assert Config.from_json(config.to_json()) == config
  assert all(field.metadata['help'] for _, field in FIELDS.values())


def test_config_file_is_overridden_by_flags(tmp_path):
  (tmp_path / 'config.json').write_text(Config().replace(model='mlp', epochs=3).to_json())
  config = parse(f'--config={tmp_path}/config.json', '--epochs=5')
  assert (config.architecture.model, config.training.epochs) == ('mlp', 5)


def test_what_a_run_changed_makes_it_again_as_flags():
  given = dict(model='resnet8', learning_rate=0.01, augment_flip=True, keep_zeros=False)
  config = Config().replace(**given, runs_dir='elsewhere')
  assert Config().changed() == {} and config.changed() == given
  again = parse(*(f'--{name}={value}' for name, value in config.changed().items()))
  assert again.name() == config.name()


@pytest.mark.parametrize('argument, words', [
    ('--model=resnet9', ("'resnet9'", "did you mean 'resnet8'", 'lenet5')),
    ('--optimizer=adan', ("did you mean 'adam'", 'sgd')),
    ('--epoch=3', ('epoch', 'epochs')),
    ('--epochs=0', ('must be at least 1',)),
    ('--epochs=two', ("'two'", 'int')),
    ('--dropout=1.5', ('at least 0 and at most 0.99',)),
    ('--learning_rate=nan', ('must be at least 0',)),
])
def test_a_bad_flag_says_what_is_allowed(argument, words):
  with pytest.raises(absl_flags.Error) as error:
    parse(argument)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize('values, words', [
    (dict(quantize_weight_bits=1), '2 to 16'), (dict(prune_begin=0.9), 'prune_end'),
    (dict(folds=1), 'at least 2'),
])
def test_fields_that_contradict_each_other(values, words):
  with pytest.raises(UserError, match=words):
    Config().replace(**values).check()


@pytest.mark.parametrize('text, words', [
    ('{"architecture": {"modle": "lenet5"}}', "did you mean 'model'"), ('[1]', 'not the JSON'),
    ('{', 'not the JSON'),
    ('{"training": {"epochs": "3"}}', 'must be of type int'),
    ('{"training": {"epochs": true}}', 'must be of type int'),
])
def test_a_damaged_config_file_is_named(text, words):
  with pytest.raises(UserError, match=words):
    Config.from_json(text, source='there')


def test_identity_ignores_exactly_the_fields_that_cannot_change_a_result():
  base = Config()
  for name, (_, field) in FIELDS.items():
    kind, _ = config_lib.value_type(name)
    if kind is str:
      other = 'other'
    elif kind is bool:
      other = not field.default
    else:
      other = kind((field.default or 0) + 1)
    changes = base.replace(**{name: other}).identity() != base.identity()
    assert changes == field.metadata['identity'], name


def test_run_name_is_for_people_and_machines():
  assert Config().name() == f'lenet5-mnist5k-{Config().identity()}'
  # Options that are added later must not give earlier runs other names.
  assert Config().replace(model='resnet8', epochs=5).name() == 'resnet8-mnist5k-f051277bd0'
  assert Config().replace(dataset='folder:/data/cats-dogs/').name().startswith('lenet5-cats-dogs-')
  name = Config().replace(dataset='csv:/data/prices.csv', model='linear').name()
  assert name.startswith('linear-prices-')


def test_configurations_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Config().training.epochs = 3


def test_registry_finds_names_without_importing_and_refuses_duplicates():
  names = registry.Registry('model', 'MODELS', 'models').names()
  assert {'lenet5', 'resnet20'} <= set(names)
  fresh = registry.Registry('thing', 'NONE', 'losses')

  def one():
    pass
  fresh.register(one)

  def make():
    def one():
      pass
    return one
  with pytest.raises(ValueError, match='already registered'):
    fresh.register(make())
  with pytest.raises(UserError, match="did you mean 'one'"):
    fresh.get('onee')


def script_flags():
  """The flags of a script with a list and a choice of its own."""
  values = absl_flags.FlagValues()
  flags.define(values)
  absl_flags.DEFINE_list('widths', '2,3', 'widths to try', flag_values=values)
  absl_flags.DEFINE_enum('way', 'one', ('one', 'two'), 'how', flag_values=values)
  return values


def test_help_shows_meaning_default_unit_and_choices_of_every_flag():
  text = help_text.full('Doc.', ('widths', 'way'), script_flags())
  assert all(f'\n  --{name}=' in text for name in FIELDS)
  for shown in ('--epochs=20\n', '[pixels]', '      one of: bilstm_classifier, ',
                '--widths=2,3\n', '--way=one\n      how\n      one of: one, two\n',
                '--config=unset'):
    assert shown in text, shown
  assert max(map(len, text.splitlines())) <= 100
  blocks = text.split('\n\n')
  titles = [block.partition(':')[0] for block in blocks[1:]]
  concerns = [field.name.capitalize() for field in dataclasses.fields(Config)]
  assert blocks[0] == 'Doc.' and titles == ['Flags', *concerns]


def test_short_help_shows_a_scripts_own_flags_and_the_twelve_most_used():
  text = help_text.short('Doc.\n\nMore.', ('widths', 'way'), script_flags())
  shown = [line.partition('=')[0].strip() for line in text.splitlines() if line.startswith('  --')]
  assert shown == ['--widths', '--way', '--config', *(f'--{name}' for name in help_text.MOST_USED)]
  assert len(help_text.MOST_USED) == 12 and set(help_text.MOST_USED) <= FIELDS.keys()
  assert text.startswith('Doc.\n\nFlags:') and 'More.' not in text
  plain = absl_flags.FlagValues()  # of a script without a configuration
  absl_flags.DEFINE_string('run', '', 'a folder', flag_values=plain)
  text = help_text.short('Doc.', ('run',), plain)
  assert '  --run=unset\n      a folder\n\n' in text and 'Most used' not in text


def test_an_unknown_choice_is_named_with_the_nearest_before_the_list():
  said = registry.unknown('model', 'resnet9', registry.MODELS.names()).splitlines()
  assert said[0] == "unknown model 'resnet9'; did you mean 'resnet8'?"
  assert said[1].startswith('  Allowed: bilstm_classifier, ') and len(said) > 3
  assert max(map(len, said)) <= 96
  assert ' '.join(said[1:]).split() == ['Allowed:', *', '.join(registry.MODELS.names()).split()]
  assert registry.unknown('loss', 'x', ('mse',)) == "unknown loss 'x'\n  Allowed: mse"


def test_json_groups_fields_by_concern():
  assert json.loads(Config().to_json())['training']['epochs'] == 20


def test_sweep_flags_take_lists():
  values = absl_flags.FlagValues()
  flags.define_lists(values, runs_dir='runs/x')
  values(['sweep', '--l2=0,1e-4', '--model=mlp,lenet5', '--augment_flip', '--nopictures',
          '--target=a,b;c', '--tied=true,false', '--seed=1'])
  base, lists = flags.lists(values)
  assert lists == dict(l2=[0.0, 1e-4], model=['mlp', 'lenet5'], augment_flip=[True],
                       pictures=[False], target=['a,b', 'c'], tied=[True, False], seed=[1])
  assert base == Config().replace(runs_dir='runs/x')
  for wrong in ('--l2=0,-1', '--model=mlp,lenet6', '--l2=', '--tied=perhaps'):
    with pytest.raises(absl_flags.IllegalFlagValueError):
      values(['sweep', wrong])


def test_a_run_that_starts_from_another_does_not_do_again_what_that_did_once():
  base = Config().replace(
      seed=3, epochs=7, freeze='conv1', init_from='runs/a', patience=2,
      prune_sparsity=0.5, factorize_rank=0.3, distill=1.0, teacher='runs/b', soft_sharing=1e-3,
      quantize_weight_bits=4, quantize_weights='lsq', quantize_after=True, quantize_equalize=True,
      quantize_rounding='adaround', weight_decay=0.1)
  assert base.as_start().changed() == dict(
      seed=3, freeze='conv1', quantize_weight_bits=4, quantize_weights='lsq',
      weight_decay=0.1)


def test_a_folder_is_the_same_with_a_slash_at_its_end():
  one, other = (Config().replace(init_from=path) for path in ('runs/a', 'runs/a/'))
  assert one.name() == other.name() != Config().name()
