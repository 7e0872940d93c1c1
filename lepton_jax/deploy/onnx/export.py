"""A trained network as an ONNX file."""

import json

import jax
import numpy as np

from lepton_jax import trees
from lepton_jax.deploy import traced as traced_lib
from lepton_jax.deploy.onnx import graph as graph_lib
from lepton_jax.deploy.onnx import operators, simplify, walk
from lepton_jax.errors import UserError
from lepton_jax.layers import platform, recurrent


def export(trained, int4=False):
  """(the bytes of an ONNX file, notes) of a folder.Trained.

  With `int4` kernels of up to four bits take four bits each, even where a runtime would compute
  with eight in whole numbers. Raises UserError for what has no form in ONNX.
  """
  if any(f'/{recurrent.CELL}/' in site for site in trained.network.compression.sites):
    raise UserError('recurrent operators of ONNX round no gates, as this network does '
                    '(--quantize_gate_bits); --format=stablehlo and --format=lepton do')
  traced = traced_lib.trace(trained)
  content = build(traced.run, traced.weights, traced.inputs, traced.outputs, traced.levels,
                  trained.config.architecture.model, metadata(trained), int4)
  return content, notes(trained, traced.levels)


def notes(trained, levels):
  """What a user should know who runs the file, in sentences."""
  compression, told = trained.network.compression, []
  rows = compression.kernels(trees.kernels(trained.weights['params']), trained.config)
  uneven = [row['kernel'] for row in rows if 'weight_bits' in row and row['kernel'] not in levels]
  if any(site.endswith(f'/{recurrent.CELL}') for site in compression.sites):
    told.append('recurrent operators round no states: what they carry from step to step is exact')
  if levels and not compression.sites:
    told.append('weights are stored as whole numbers; inputs of layers are not rounded, so a '
                'runtime computes in float: only size is won')
  if uneven:
    told.append(f'{len(uneven)} rounded kernels have levels at unequal distances, which ONNX '
                f'lacks: they are stored as float32')
  if trained.config.architecture.dtype != 'float32':
    told.append(f'trained in {trained.config.architecture.dtype}, computed in float32')
  return told


def build(run, weights, inputs, outputs, levels, name, about, int4=False):
  """The bytes of an ONNX file of a function run(weights, *inputs) -> outputs.

  Args:
    weights: {'params': tree, ...}, which become constants.
    inputs: {name: (dtype, shape)}; words in shapes are sizes that stay free.
    outputs: names of the outputs.
    levels: {kernel of params: (levels, scale)} of those that are whole numbers times a scale.
    name, about: of the graph, and {key: text} for its metadata.
    int4: as in `export`.
  """
  import onnx
  shapes = traced_lib.shapes(inputs)
  with platform.using('graph'):
    closed, outs = jax.make_jaxpr(run, return_shape=True)(weights, *shapes)
  graph = graph_lib.Graph(operators.LAYERS)
  for one, (_, shape) in inputs.items():
    for axis, size in enumerate(shape):
      if isinstance(size, str):
        graph.sizes.setdefault(size, (one, axis))
  values = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
    on = levels.get('/'.join(str(key.key) for key in path[1:])) if path[0].key == 'params' else None
    values.append(graph_lib.constant(np.asarray(leaf), on and graph_lib.Levels(*on)))
  values += [graph_lib.Value(shape.shape, shape.dtype, one) for one, shape in zip(inputs, shapes)]
  found = walk.walk(graph, closed, values)
  for one, value in zip(outputs, found):
    graph.nodes.append(onnx.helper.make_node('Identity', [graph.place(value, whole=True)], [one]))
  simplify.simplify(graph, outputs, int4)
  described = {one: (out.dtype, tuple(map(told, out.shape)))
               for one, out in zip(outputs, jax.tree.leaves(outs))}
  model = graph.model(name, inputs, described, about)
  try:
    onnx.checker.check_model(model, full_check=True)
  except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
    raise UserError(f'--format=onnx: the graph that was made is not valid, a fault of this '
                    f'program: {str(error).splitlines()[0]}') from error
  return model.SerializeToString()


def told(size):
  return size if isinstance(size, int) else str(size)


def metadata(trained):
  """What a user of the file has to know beside its inputs, as {name: text}."""
  data, config = trained.data, trained.config
  found = dict(model=config.architecture.model, dataset=data.name, measure=data.measure)
  if data.classes and not data.stream:
    found['classes'] = json.dumps(list(data.classes))
  if data.vocabulary:
    found['vocabulary'] = json.dumps(list(data.vocabulary), ensure_ascii=False)
    found['tokenizer'] = 'characters' if data.stream else config.data.tokenizer
  if data.columns:
    found['columns'] = json.dumps(list(data.columns))
  return found
