"""Our benchmarked networks in plain Flax and Optax, as its guides write them.

Their parameter counts agree with ours.
"""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.peers import race


class Plain(nn.Module):
  """Convolutions of the channels in `plan`, each 'pool' a 2x2 max pool, then dense layers."""
  plan: tuple
  dense: tuple
  kernel: int = 3
  conv_activation: bool = True
  outputs: int = 10

  @nn.compact
  def __call__(self, x, train):
    for item in self.plan:
      if item == 'pool':
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        continue
      x = nn.Conv(item, (self.kernel, self.kernel), padding='VALID')(x)
      x = nn.relu(x) if self.conv_activation else x
    x = x.reshape((x.shape[0], -1))
    for units in self.dense:
      x = nn.relu(nn.Dense(units)(x))
    return nn.Dense(self.outputs)(x)


class ResNet(nn.Module):
  """A stem, stages of blocks, global average pool, head; `kind` of shortcut as in our models."""
  features: tuple
  blocks: int
  kind: str
  outputs: int = 10

  @nn.compact
  def __call__(self, x, train):
    norm = lambda: nn.BatchNorm(use_running_average=not train, momentum=0.9)
    bias = self.kind == 'conv'
    x = nn.relu(norm()(nn.Conv(self.features[0], (3, 3), use_bias=bias)(x)))
    for stage, features in enumerate(self.features):
      for block in range(self.blocks):
        strides = (2, 2) if stage and not block else (1, 1)
        y = nn.relu(norm()(nn.Conv(features, (3, 3), strides, use_bias=bias)(x)))
        y = norm()(nn.Conv(features, (3, 3), use_bias=bias)(y))
        if x.shape != y.shape:
          if self.kind == 'pad':
            extra = features - x.shape[-1]
            channels = (extra // 2, extra - extra // 2)
            x = jnp.pad(x[:, ::strides[0], ::strides[1]], ((0, 0), (0, 0), (0, 0), channels))
          else:
            x = nn.Conv(features, (1, 1), strides, use_bias=bias)(x)
            x = norm()(x) if self.kind == 'conv_norm' else x
        x = nn.relu(x + y)
    return nn.Dense(self.outputs)(x.mean((1, 2)))


class MobileNet(nn.Module):
  """MobileNet without a width multiplier."""
  outputs: int = 10

  @nn.compact
  def __call__(self, x, train):
    def unit(x, features, kernel, strides=1, groups=1):
      x = nn.Conv(features, kernel, (strides, strides), feature_group_count=groups,
                  use_bias=False)(x)
      return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))

    x = unit(x, 32, (3, 3), 2)
    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5,
            (1024, 2), (1024, 1))
    for features, strides in plan:
      x = unit(x, x.shape[-1], (3, 3), strides, x.shape[-1])
      x = unit(x, features, (1, 1))
    return nn.Dense(self.outputs)(x.mean((1, 2)))


class Classifier(nn.Module):
  """Embedding, one LSTM, its last state, a head."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Embed(10_000, 128)(x)
    return nn.Dense(2)(nn.RNN(nn.OptimizedLSTMCell(128, dtype=x.dtype))(x)[:, -1])


NETWORKS = dict(
    cnn_cifar=Plain((32, 'pool', 64, 'pool', 64), (64,)),
    lenet5=Plain((20, 'pool', 50, 'pool'), (500,), kernel=5, conv_activation=False),
    resnet8=ResNet((16, 32, 64), 1, 'conv'),
    resnet20=ResNet((16, 32, 64), 3, 'pad'),
    resnet18=ResNet((64, 128, 256, 512), 2, 'conv_norm'),
    mobilenet_v1=MobileNet(),
    lstm_classifier=Classifier(),
    lenet_300_100=Plain((), (300, 100)),
)


class Contestant:
  """Trains or predicts with one network on one device.

  The weights stay in float32; what is computed with them is of `dtype`.
  """

  def __init__(self, name, inputs, label, dtype='float32'):
    model, adam = NETWORKS[name], optax.adam(1e-3)

    def lower(tree):
      return jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, tree)
    self._batch = lower(jnp.asarray(inputs)), jnp.asarray(label)
    variables = model.init(jax.random.key(0), self._batch[0][:1], False)
    params, rest = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
    self.parameters = sum(p.size for p in jax.tree.leaves(params))
    self._state = params, rest, adam.init(params)

    def step(state, batch):
      params, rest, optimizer = state

      def objective(params):
        logits, changed = model.apply({'params': lower(params), **rest}, batch[0], True,
                                      mutable=list(rest))
        wide = logits.astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(wide, batch[1]).mean()
        return loss, changed

      (loss, changed), gradient = jax.value_and_grad(objective, has_aux=True)(params)
      updates, optimizer = adam.update(gradient, optimizer)
      return (optax.apply_updates(params, updates), changed, optimizer), loss

    def predict(params, rest, x):
      return model.apply({'params': lower(params), **rest}, x, False)

    self._step, self._predict = jax.jit(step, donate_argnums=0), jax.jit(predict)
    began = time.perf_counter()
    self.train(1)
    self.compile_seconds = time.perf_counter() - began

  def train(self, steps):
    """Takes so many steps and waits for the last; returns how many."""
    for _ in range(steps):
      self._state, loss = self._step(self._state, self._batch)
    float(loss)
    return steps

  def facts(self):
    """What the table says beside the times.

    `flops` is a training step's, three forward passes of the network as its papers define it.
    """
    forward = jax.make_jaxpr(self._predict)(*self._state[:2], self._batch[0])
    return dict(version=jax.__version__, device=jax.devices()[0].device_kind,
                flops=3 * flops(forward.jaxpr))

  def device_memory(self):
    return race.jax_device_memory()

  def predict(self, passes, batch):
    """So many forward passes over the first `batch` examples."""
    x = self._batch[0][:batch]
    for _ in range(passes):
      answer = self._predict(*self._state[:2], x)
    answer.block_until_ready()


def flops(jaxpr):
  """Multiplications and additions of the matrix products and convolutions in a jaxpr.

  Those of a scan count as often as it runs.
  """
  total = 0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    shapes = [v.aval.shape for v in equation.invars if hasattr(v, 'aval')]
    if name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      terms = np.prod([shapes[0][i] for i in contracted])
      total += 2 * np.prod(equation.outvars[0].aval.shape) * terms
    elif name == 'conv_general_dilated':
      total += 2 * np.prod(equation.outvars[0].aval.shape) * np.prod(shapes[1][:-1])
    times = equation.params.get('length', 1) if name == 'scan' else 1
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        total += times * flops(inner)
  return float(total)
