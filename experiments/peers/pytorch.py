"""Our benchmarked networks in PyTorch, as its tutorials write them.

Their parameter counts agree with ours, but for the second bias of its LSTM.
"""

import time

import torch
from torch import nn
from torch.nn import functional


def plain(plan, dense, kernel, padding, image, outputs=10, conv_activation=True):
  """Convolutions of the channels in `plan`, each 'pool' a 2x2 max pool, then dense layers."""
  found, channels, side = [], image[2], image[0]
  for item in plan:
    if item == 'pool':
      found.append(nn.MaxPool2d(2))
      side //= 2
      continue
    found.append(nn.Conv2d(channels, item, kernel, padding=kernel // 2 if padding else 0))
    if conv_activation:
      found.append(nn.ReLU())
    channels, side = item, side if padding else side - kernel + 1
  found.append(nn.Flatten())
  features = channels * side * side
  for units in dense:
    found += [nn.Linear(features, units), nn.ReLU()]
    features = units
  return nn.Sequential(*found, nn.Linear(features, outputs))


class Block(nn.Module):
  """A residual block; `kind` of shortcut as in our models."""

  def __init__(self, before, features, strides, kind):
    super().__init__()
    bias = kind == 'conv'
    self.body = nn.Sequential(
        nn.Conv2d(before, features, 3, strides, 1, bias=bias), nn.BatchNorm2d(features), nn.ReLU(),
        nn.Conv2d(features, features, 3, 1, 1, bias=bias), nn.BatchNorm2d(features))
    self.strides, self.extra = strides, features - before if kind == 'pad' else 0
    self.shortcut = nn.Identity()
    if kind != 'pad' and (strides > 1 or before != features):
      self.shortcut = nn.Conv2d(before, features, 1, strides, bias=bias)
      if kind == 'conv_norm':
        self.shortcut = nn.Sequential(self.shortcut, nn.BatchNorm2d(features))

  def forward(self, x):
    short = self.shortcut(x)
    if self.extra:
      channels = (self.extra // 2, self.extra - self.extra // 2)
      short = functional.pad(short[:, :, ::self.strides, ::self.strides], (0, 0, 0, 0, *channels))
    return torch.relu(self.body(x) + short)


def resnet(features, blocks, kind, outputs=10):
  """A stem, stages of blocks, global average pool, head."""
  found = [nn.Conv2d(3, features[0], 3, 1, 1, bias=kind == 'conv'), nn.BatchNorm2d(features[0]),
           nn.ReLU()]
  before = features[0]
  for stage, width in enumerate(features):
    for block in range(blocks):
      found.append(Block(before, width, 2 if stage and not block else 1, kind))
      before = width
  return nn.Sequential(*found, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs))


def mobilenet(outputs=10):
  """MobileNet without a width multiplier."""
  def unit(*arguments, **options):
    return [nn.Conv2d(*arguments, bias=False, **options), nn.BatchNorm2d(arguments[1]), nn.ReLU()]

  plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2),
          (1024, 1))
  found, before = unit(3, 32, 3, 2, 1), 32
  for features, strides in plan:
    found += unit(before, before, 3, strides, 1, groups=before) + unit(before, features, 1)
    before = features
  return nn.Sequential(*found, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs))


class Classifier(nn.Module):
  """Embedding, one LSTM, its last state, a head."""

  def __init__(self, words=10_000, size=128, outputs=2):
    super().__init__()
    self.embed = nn.Embedding(words, size)
    self.lstm = nn.LSTM(size, size, batch_first=True)
    self.head = nn.Linear(size, outputs)

  def forward(self, x):
    return self.head(self.lstm(self.embed(x))[1][0][-1])


NETWORKS = dict(
    cnn_cifar=lambda: plain((32, 'pool', 64, 'pool', 64), (64,), 3, False, (32, 32, 3)),
    lenet5=lambda: plain((20, 'pool', 50, 'pool'), (500,), 5, False, (28, 28, 1),
                         conv_activation=False),
    resnet8=lambda: resnet((16, 32, 64), 1, 'conv'),
    resnet20=lambda: resnet((16, 32, 64), 3, 'pad'),
    resnet18=lambda: resnet((64, 128, 256, 512), 2, 'conv_norm'),
    mobilenet_v1=mobilenet,
    lstm_classifier=Classifier,
    lenet_300_100=lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(),
                                        nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)),
)


class Contestant:
  """Trains or predicts with one network.

  `layout` is 'nchw' or 'channels_last', `dtype` float32 or bfloat16 by autocast.
  """

  def __init__(self, name, inputs, label, layout='nchw', dtype='float32', compiled=False):
    self._device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if self._device == 'cuda':
      torch.backends.cudnn.benchmark = True  # tries its convolutions out, as XLA does
      # As XLA's products and both libraries' convolutions, these are in TF32.
      torch.set_float32_matmul_precision('high')
    memory = torch.channels_last if layout == 'channels_last' else torch.contiguous_format
    module = NETWORKS[name]().to(self._device)
    x = torch.from_numpy(inputs)
    if x.ndim == 2:
      self._x = x.to(self._device).long()
    else:
      self._x = x.permute(0, 3, 1, 2).to(self._device).contiguous(memory_format=memory)
    self._label = torch.from_numpy(label).long().to(self._device)
    self._module = module.to(memory_format=memory) if x.ndim == 4 else module
    self.parameters = sum(p.numel() for p in module.parameters())
    self._adam = torch.optim.Adam(module.parameters(), lr=1e-3)
    self._run = torch.compile(self._module) if compiled else self._module
    self._autocast = lambda: torch.autocast(self._device, torch.bfloat16,
                                            enabled=dtype == 'bfloat16')
    began = time.perf_counter()
    self.train(1)
    self.compile_seconds = time.perf_counter() - began

  def train(self, steps):
    """Takes so many steps and waits for the last; returns how many."""
    self._module.train()
    for _ in range(steps):
      self._adam.zero_grad(set_to_none=True)
      with self._autocast():
        loss = functional.cross_entropy(self._run(self._x), self._label)
      loss.backward()
      self._adam.step()
    float(loss.detach())
    return steps

  def facts(self):
    """What the table says beside the times."""
    return dict(threads=torch.get_num_threads(), version=torch.__version__,
                device=torch.cuda.get_device_name() if self._device == 'cuda' else 'cpu')

  def device_memory(self):
    """Most memory of the card in use so far, MiB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2 ** 20 if self._device == 'cuda' else None

  def predict(self, passes, batch):
    """So many forward passes over the first `batch` examples."""
    self._module.eval()
    x = self._x[:batch]
    with torch.inference_mode(), self._autocast():
      for _ in range(passes):
        answer = self._run(x)
    float(answer.sum())
