"""The options of a run: frozen dataclasses, one per concern, whose fields are also flags.

Every field is documented where it is declared. A field marked `identity=False` cannot change a
result (where to run, where to write, how much to print), so it stays out of the run's name.
"""

import dataclasses

from lepton_jax import registry


def option(default, help, *, unit='', choices=None, low=None, high=None, identity=True,
           traced=False, log=False, separator=',', among=None):
  """A dataclass field that is also a flag.

  `choices` is a tuple of names or a Registry; `low` and `high` bound a number, inclusively. A field
  typed `X | None` is unset by default and then left to the model or data set. All non-zero values
  of a `traced` field share one compiled program. A search draws a `log` field evenly on a log
  scale; a sweep's list of values is cut at `separator`. `among` is a Registry of names that are
  shown beside others that are allowed.
  """
  return dataclasses.field(default=default, metadata=dict(
      help=help, unit=unit, choices=choices, low=low, high=high, identity=identity, traced=traced,
      log=log, separator=separator, among=among))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
  """The network. Options left unset take the model's own value; one the model lacks is an error."""
  model: str = option('lenet5', 'network to train', choices=registry.MODELS)
  width: float | None = option(None, 'factor on the number of channels or hidden units',
                               low=0.01, high=100)
  depth: int | None = option(None, 'hidden layers, or blocks per stage', low=1, high=1000)
  activation: str | None = option(
      None, 'non-linearity',
      choices=('relu', 'gelu', 'silu', 'tanh', 'sigmoid', 'elu', 'leaky_relu'))
  norm: str | None = option(None, 'normalisation layer',
                            choices=('batch', 'group', 'layer', 'none'))
  dropout: float | None = option(None, 'dropout rate', low=0, high=0.99, traced=True)
  stochastic_depth: float | None = option(
      None, 'share of residual branches left out, at the last block (arXiv:1603.09382)',
      low=0, high=0.99, traced=True)
  recurrent_dropout: float | None = option(None, 'dropout rate of the state, one mask a sequence',
                                           low=0, high=0.99, traced=True)
  hidden: int | None = option(None, 'units of a recurrent layer', low=1, high=65536)
  embedding: int | None = option(None, 'size of a word vector', low=1, high=65536)
  tied: bool | None = option(None, 'language model: the embedding is the output layer as well')
  pooling: str | None = option(None, 'how a recurrent network sums up its steps',
                               choices=('last', 'mean', 'max'))
  dtype: str = option(
      'float32', 'precision of activations and compute; parameters are float32 at least',
      choices=('float32', 'bfloat16', 'float64'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Where examples come from and how they are split. Test examples never take part in a choice."""
  dataset: str = option(
      'mnist5k', "embedded set, TFDS name (mnist, cifar10, ...), "
                 "'folder:/path', 'csv:/path', 'text:/path' or 'series:/path'",
      among=registry.DATASETS)
  data_dir: str = option(
      '', 'folder of prepared TFDS data; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets',
      identity=False)
  manual_dir: str = option(
      '', 'folder of raw mnist, fashion_mnist or cifar10 files, read without TensorFlow',
      identity=False)
  cache_dir: str = option('', 'decoded arrays are kept here; empty: ~/.cache/lepton_jax/data',
                          identity=False)
  image_size: int = option(0, 'resize images to this height and width; 0 keeps them (folders: 64)',
                           unit='pixels', low=0, high=1024)
  validation_fraction: float = option(
      0.1, 'share of the training part held out where the source has no validation split',
      low=0, high=0.9)
  test_fraction: float = option(0.2, 'share held out for test where the source has no test split',
                                low=0, high=0.9)
  train_limit: int = option(0, 'train on a stratified subset of this many examples; 0 takes all',
                            unit='examples', low=0)
  split_seed: int = option(0, 'seed of the splits', low=0)
  folds: int = option(
      0, 'k-fold cross-validation over training + validation examples; 0: off. '
         'Unless --select=last, each best epoch is chosen on its own fold',
      low=0, high=100)
  fold: int | None = option(None, 'train this fold alone; unset: all of them', low=0)
  target: str = option('', 'csv: name of the target column; series: one or more, comma-separated',
                       separator=';')
  time_column: str = option('date', 'series: name of the time column')
  window: int = option(96, 'series: past steps the network sees', unit='steps', low=1)
  horizon: int = option(1, 'series: future steps it predicts', unit='steps', low=1)
  season: int = option(24, 'series: steps of the season that the naive forecast repeats',
                       unit='steps', low=1, identity=False)
  relative: bool = option(
      False, 'series: read and forecast changes from the last value seen '
             '(NLinear, arXiv:2205.13504)')
  text_column: str = option(
      '', 'csv, tsv: name of the column that holds text; makes it a text data set')
  skip_bad_rows: bool = option(
      False, 'csv, tsv, series: leave out rows that cannot be read, and say how many; '
             'a series closes up over them')
  tokenizer: str = option(
      'words', 'text: what a token is; word_pieces reads rare and unknown words in parts, '
               'character_ngrams adds to every word what it is spelt of',
      choices=registry.TOKENIZERS)
  vocabulary_size: int = option(
      20_000, 'tokens kept, most frequent first, <pad> and <unk> among them', unit='tokens', low=3)
  vocabulary_min_count: int = option(1, 'words rarer than this in the training part become <unk>',
                                     low=1)
  sequence_length: int = option(128, 'running text: steps that are backpropagated through at once',
                                unit='characters', low=1)
  max_length: int = option(256, 'longer texts are cut here', unit='words', low=1)
  buckets: int = option(4, 'padded lengths that batches of text come in', low=1, high=64)
  task: str | None = option(
      None, 'csv: what the target is; tagging: a class for each word of --text_column; '
            'unset: regression if the loss is mse',
      choices=('classification', 'regression', 'tagging'))
  batch_size: int = option(64, 'examples a training step, over all devices', low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """Random changes of training examples, each example with its own key; 0 leaves one out."""
  augment_flip: bool = option(False, 'mirror left-right with probability 1/2')
  augment_crop: int = option(0, 'pad by this much and crop back at a random place',
                             unit='pixels', low=0, high=64)
  augment_rotate: float = option(0.0, 'rotate by up to this angle',
                                 unit='degrees', low=0, high=180, traced=True)
  augment_shift: float = option(0.0, 'shift by up to this share of the side',
                                low=0, high=1, traced=True)
  augment_zoom: float = option(0.0, 'zoom by a factor within 1 -+ this',
                               low=0, high=0.9, traced=True)
  augment_brightness: float = option(0.0, 'add up to this share of the full scale',
                                     low=0, high=1, traced=True)
  augment_contrast: float = option(0.0, 'scale the distance from the mean by 1 -+ this',
                                   low=0, high=1, traced=True)
  augment_cutout: int = option(0, 'erase a square of this side (arXiv:1708.04552)',
                               unit='pixels', low=0, high=512, traced=True)
  augment_word_dropout: float = option(
      0.0, 'text: share of the words that become <unk>, so that the network meets it',
      low=0, high=0.9, traced=True)
  augment_mixup: float = option(0.0, 'blend pairs, weight ~ Beta(a, a) (arXiv:1710.09412)',
                                low=0, high=100, traced=True)
  augment_cutmix: float = option(
      0.0, 'paste boxes between pairs, area ~ Beta(a, a) (arXiv:1905.04899)',
      low=0, high=100, traced=True)

  @property
  def on(self):
    """Names of those that are on."""
    return [name for name, value in dataclasses.asdict(self).items() if value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
  """How the weights move."""
  optimizer: str = option('adam', 'update rule; weight decay is decoupled in all of them',
                          choices=registry.OPTIMIZERS)
  learning_rate: float = option(1e-3, 'peak learning rate', low=0, traced=True, log=True)
  momentum: float = option(
      0.9, 'momentum, nesterov, rmsprop: momentum; adam, adamw, lamb: first-moment decay',
      low=0, high=1)
  schedule: str = option('cosine', 'learning rate over the run', choices=registry.SCHEDULES)
  warmup_epochs: float = option(0.0, 'linear rise from 0 before the schedule', unit='epochs', low=0)
  schedule_boundaries: str = option(
      '0.5,0.75', 'step schedule: shares of the run at which the rate drops', separator=';')
  schedule_factor: float = option(
      0.1, 'step: factor at each drop; exponential: rate at the end over rate at the start',
      low=0, high=1)
  weight_decay: float = option(
      0.0, 'decoupled decay a step, times the learning rate; kernels only (arXiv:1711.05101)',
      low=0, traced=True, log=True)
  clip_norm: float = option(0.0, 'clip the global norm of the gradient; 0: off', low=0, traced=True)
  loss: str | None = option(None, 'objective; unset: by task and model', choices=registry.LOSSES)
  class_weights: str = option(
      'none', 'weigh training losses by inverse class frequency, for imbalance',
      choices=('none', 'balanced'))
  ema_decay: float = option(
      0.0, 'evaluate an exponential moving average of the weights with this decay; 0: off',
      low=0, high=0.999999, traced=True)
  swa_start: float = option(
      0.0, 'share of the run from which averaged weights are evaluated '
           '(SWA, arXiv:1803.05407); 0: off',
      low=0, high=0.99, traced=True)
  solver: str = option('gradient', 'closed_form solves --model=linear --loss=mse by least squares',
                       choices=('gradient', 'closed_form'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regularize:
  """Penalties, noise and constraints; a strength of 0 is absent from the program."""
  l1: float = option(0.0, 'strength * sum |w| over kernels', low=0, traced=True, log=True)
  l2: float = option(
      0.0, 'strength * sum w^2 over kernels (coupled: adaptive optimizers rescale it)',
      low=0, traced=True, log=True)
  group_lasso: float = option(
      0.0, 'strength * sum of sqrt(size) * |w| over filters and hidden units (arXiv:1608.03665)',
      low=0, traced=True, log=True)
  orthogonality: float = option(
      0.0, 'strength * squared distance of each kernel from an orthogonal one (arXiv:1609.07093)',
      low=0, traced=True, log=True)
  max_norm: float = option(
      0.0, 'largest norm of the weights into a filter or unit (JMLR 15, 2014); 0: off',
      low=0, traced=True)
  spatial_dropout: float = option(
      0.0, 'share of the feature maps of each convolution set to zero (arXiv:1411.4280)',
      low=0, high=0.99, traced=True)
  drop_connect: float = option(
      0.0, 'share of single weights set to zero at each step (Wan et al., ICML 2013)',
      low=0, high=0.99, traced=True)
  weight_noise: float = option(
      0.0, 'deviation of noise on the weights of each step (Graves, NIPS 2011)',
      low=0, traced=True, log=True)
  input_noise: float = option(
      0.0, 'deviation of noise on normalised inputs (Neural Comput. 7, 1995)',
      low=0, traced=True, log=True)
  gradient_noise: float = option(
      0.0, 'deviation of noise on the first gradient, fading (arXiv:1511.06807)',
      low=0, traced=True, log=True)
  label_smoothing: float = option(
      0.0, 'share of the target spread evenly over the classes (arXiv:1512.00567)',
      low=0, high=0.99, traced=True)
  confidence_penalty: float = option(
      0.0, 'strength * minus the entropy of the prediction (arXiv:1701.06548)',
      low=0, traced=True, log=True)
  r_drop: float = option(
      0.0, 'strength * divergence of two predictions under different dropout, '
           'two passes a step (arXiv:2106.14448)',
      low=0, traced=True)
  sam: float = option(
      0.0, 'radius of sharpness-aware minimisation, two gradients a step (arXiv:2010.01412)',
      low=0, traced=True, log=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
  """Learning from a finished run beside the labels: its answers, or values inside it as well."""
  teacher: str = option('', 'run folder of a network whose answers are learned (arXiv:1503.02531)')
  distill: float = option(
      0.0, 'strength * squared temperature * divergence from the answers of --teacher',
      low=0, traced=True, log=True)
  distill_temperature: float = option(
      4.0, 'by which the logits of both are divided before', low=0.1)
  distill_hints: float = option(
      0.0, 'strength * distance of what --distill_layers answer, before a non-linearity, from what '
           'they answer in --teacher (arXiv:1412.6550); of other widths, where that is large '
           '(arXiv:1612.03928)',
      low=0, traced=True, log=True)
  distill_layers: str = option(
      '', 'layers whose path matches this regular expression give hints', separator=';')

  @property
  def on(self):
    """Whether there is something to learn from a teacher."""
    return bool(self.distill or self.distill_hints)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factorize:
  """Low-rank factorisation of the weights that a run starts from; one layer becomes two."""
  factorize_rank: float = option(
      0.0, 'share of the parameters that all factorised layers keep together; 0: off',
      low=0, high=0.999)
  factorize_energy: float = option(
      0.0, 'share of squared singular values that each kernel keeps; 0: off', low=0, high=0.9999)
  factorize_exclude: str = option(
      '', 'kernels whose path matches this regular expression stay whole', separator=';')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftSharing:
  """Soft weight sharing: weights gather around values that are learned with them."""
  soft_sharing: float = option(
      0.0, 'strength * negative log-likelihood of the weights under a mixture for each kernel '
           '(arXiv:1702.04008)', low=0, traced=True, log=True)
  soft_sharing_values: int = option(16, 'means of the mixture, beside zero', low=1, high=256)
  soft_sharing_zero: float = option(
      0.9, 'share of the weights that the component at zero is to have', low=0.01, high=0.999)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
  """Pruning: masked weights are exactly zero."""
  prune_sparsity: float = option(0.0, 'share of all prunable kernel entries set to zero; 0: off',
                                 low=0, high=0.9999, traced=True)
  prune_score: str = option('magnitude', 'what ranks weights or channels; the lowest go',
                            choices=registry.Either(registry.SCORES, registry.CHANNEL_SCORES))
  prune_structure: str = option(
      'none', "what goes at once: 'none', single weights; 'N:M', all but N of every M neighbours "
              "along the input axis; 'channels', filters and units, which really leave the network")
  prune_round: int = option(1, 'with channels: widths stay multiples of this', low=1)
  prune_allocation: str = option('auto', 'how much of it each kernel gives up; '
                                 'auto: lamp, with channels uniform',
                                 choices=registry.Either(registry.ALLOCATIONS, ('auto',)))
  prune_layers: str = option(
      '', "sparsities of their own, 'conv1=0.5;.*=0.9'; the first rule that matches a path counts",
      separator='|')
  prune_schedule: str = option('cubic', 'when, and whether weights come back',
                               choices=registry.PRUNE_SCHEDULES)
  prune_begin: float = option(0.1, 'share of the run at which pruning starts', low=0, high=1)
  prune_end: float = option(0.6, 'share of the run at which the target is reached', low=0, high=1)
  prune_updates: int = option(20, 'mask updates between begin and end', low=1)
  prune_exchange: float = option(
      0.3, 'set, rigl: share of the weights that changes places at first', low=0, high=1)
  prune_batches: int = option(4, 'training batches that a score of gradients looks at',
                              unit='batches', low=1)
  prune_gradient: str = option(
      'masked', 'gradient of pruned weights: none, or as if they were there, '
                'so that a later update may bring them back',
      choices=('masked', 'straight_through'))
  prune_ticket: str = option(
      '', 'run folder whose final weights say what is pruned, at the first step '
          '(lottery ticket, arXiv:1803.03635)')
  keep_zeros: bool = option(
      True, 'with --init_from: kernel entries that are exactly zero there stay so; set and rigl '
            'exchange them')
  prune_exclude: str = option('', 'kernels whose path matches this regular expression stay dense',
                              separator=';')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize:
  """Quantisation-aware training with straight-through gradients; 0 bits: off."""
  quantize_weight_bits: int = option(
      0, 'width that kernels are rounded to; 0: off', unit='bits', low=0, high=16, traced=True)
  quantize_activation_bits: int = option(
      0, 'width that the inputs of layers are rounded to, each within its own range; 0: off',
      unit='bits', low=0, high=16, traced=True)
  quantize_gate_bits: int = option(
      0, "width that gates and an LSTM's cell state are rounded to; 0: off", unit='bits', low=0,
      high=16, traced=True)
  quantize_weights: str = option('max', 'levels of kernels', choices=registry.WEIGHT_QUANTIZERS)
  quantize_granularity: str = option(
      'channel', 'one scale for each output channel, or one for the kernel',
      choices=('channel', 'tensor'))
  quantize_inputs: str = option('lsq_plus', 'ranges of inputs: trained, or set anew at each epoch',
                                choices=registry.INPUT_QUANTIZERS)
  quantize_zero: str = option(
      'affine', 'ranges of inputs as they are, or as far below zero as above',
      choices=('affine', 'symmetric'))
  quantize_begin: float | None = option(
      None, 'share of the run before inputs are rounded; unset: 0.25, or 0 with --init_from', low=0,
      high=1)
  quantize_calibration: int = option(8, 'training batches that set the ranges of inputs',
                                     unit='batches', low=1)
  quantize_after: bool = option(False, 'round the weights of --init_from and train nothing; reads '
                                '--quantize_calibration training batches')
  quantize_equalize: bool = option(
      False, 'with --quantize_after: make channels of unlike size alike first (arXiv:1906.04721)')
  quantize_rounding: str = option('nearest', 'with --quantize_after: to the nearest level, or up '
                                  "or down as keeps a layer's answers (arXiv:2004.10568)",
                                  choices=('nearest', 'adaround'))
  quantize_rounding_steps: int = option(1000, 'updates of adaround for each kernel', low=1)
  quantize_layers: str = option(
      '', "bits of weights, of inputs, of gates, 'conv1=8/8;recurrent=4/8/8;head=8'; "
          'the first rule that matches a path counts',
      separator='|')
  quantize_exclude: str = option(
      '', 'kernels whose path matches this regular expression stay in float, '
          'and so do their inputs',
      separator=';')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """How long, from where, and which weights are kept."""
  epochs: int = option(20, 'passes over the training part', low=1)
  seed: int = option(0, 'initial weights, batches, augmentation, dropout', low=0)
  select: str = option('best', "weights to report: 'best' on validation, or 'last'",
                       choices=('best', 'last'))
  patience: int = option(0, 'stop after this many epochs without a better validation; 0: never',
                         unit='epochs', low=0, traced=True)
  init_from: str = option('', 'run folder to take weights from; a head of another size starts anew')
  freeze: str = option(
      '', 'parameters whose path matches this regular expression stay as they are '
          '(running averages still follow the data)',
      separator=';')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Where and how the run executes. None of these changes a result by more than rounding."""
  runs_dir: str = option('runs', 'run folders are made here (a local path or gs://...)',
                         identity=False)
  rerun: bool = option(False, 'start over if the run folder is finished', identity=False)
  parallel: str = option(
      'auto', 'one device, or the batch split over several by sharding or by pmap; '
              'auto: by backend and model',
      choices=('auto', 'jit', 'sharded', 'pmap'), identity=False)
  devices: int = option(0, 'devices to use in sharded and pmap; 0: all', low=0, identity=False)
  processes: int = option(
      0, 'how many processes train as one, each started with this command; 0: what Cloud TPU VMs, '
         'SLURM, Open MPI and GKE say, else 1', low=0, identity=False)
  process_index: int = option(-1, 'place of this process among them, from 0', low=-1,
                              identity=False)
  coordinator: str = option('', 'HOST:PORT by which they find each other: a free port of the '
                                'machine of process 0', identity=False)
  convolution: str = option(
      'auto', 'what computes convolutions and matrix products on a CPU; '
              'auto: oneDNN where it is installed',
      choices=('auto', 'onednn', 'xla'), identity=False)
  cpu_devices: int = option(
      0, 'virtual CPU devices to make; 0: one a core, with --parallel=jit one',
      low=0, high=256, identity=False)
  steps_per_call: str = option(
      'auto', 'train steps in one compiled call, or auto: by backend and model', identity=False)
  profile: str = option('', "steps that JAX's profiler looks at, '20-30'; a trace for TensorBoard "
                            'or Perfetto is in profile/ of the run folder', identity=False)
  checkpoint_every: int = option(1, 'epochs between checkpoints; 0: only where a run is stopped',
                                 unit='epochs', low=0, identity=False)
  save_weights: bool = option(True, 'keep the selected weights', identity=False)
  keep_checkpoints: int = option(2, 'checkpoints kept', low=2, identity=False)
  tensorboard: bool = option(True, 'write TensorBoard events', identity=False)
  pictures: bool = option(True, 'draw learning curves', identity=False)
  compilation_cache: str = option(
      '', "folder of compiled programs; empty: ~/.cache/lepton_jax/xla; 'off' disables",
      identity=False)
