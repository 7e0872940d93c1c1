"""A trained network as an ONNX file."""

import json

import jax
import numpy as np

from lepton_jax.deploy import traced as traced_lib
from lepton_jax.deploy.onnx import graph as graph_lib
from lepton_jax.deploy.onnx import operations, simplify
from lepton_jax.layers import platform


def export(trained, int4=False):
  """(the bytes of an ONNX file, notes) of a folder.Trained.

  With `int4` kernels of up to four bits take four bits each, even where a runtime would compute
  with eight in whole numbers. Raises UserError for an operation that has no form in ONNX.
  """
  import onnx
  traced = traced_lib.trace(trained)
  scope = jax.export.SymbolicScope()
  shapes = [jax.ShapeDtypeStruct(traced_lib.symbolic(shape, scope), dtype)
            for dtype, shape in traced.inputs.values()]
  with platform.using('graph'):
    closed, outs = jax.make_jaxpr(traced.run, return_shape=True)(traced.weights, *shapes)
  graph = graph_lib.Graph()
  for name, (_, shape) in traced.inputs.items():
    for axis, size in enumerate(shape):
      if isinstance(size, str):
        graph.sizes.setdefault(size, (name, axis))
  values = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(traced.weights):
    name = '/'.join(str(key.key) for key in path[1:])
    on = traced.levels.get(name) if path[0].key == 'params' else None
    values.append(graph_lib.constant(np.asarray(leaf), on and graph_lib.Levels(*on)))
  values += [graph_lib.Value(shape.shape, shape.dtype, name)
             for name, shape in zip(traced.inputs, shapes)]
  found = operations.walk(graph, closed, values)
  for name, value in zip(traced.outputs, found):
    graph.nodes.append(onnx.helper.make_node('Identity', [graph.place(value, whole=True)], [name]))
  simplify.simplify(graph, traced.outputs, int4)
  outputs = {name: (out.dtype, tuple(map(told, out.shape)))
             for name, out in zip(traced.outputs, jax.tree.leaves(outs))}
  model = graph.model(trained.config.architecture.model, traced.inputs, outputs,
                      metadata(trained))
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString(), traced.notes


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
  if data.columns:
    found['columns'] = json.dumps(list(data.columns))
  return found
