"""Serves exported networks over HTTP by ONNX Runtime.

Question: what does my compressed network answer, and what did the dense one?
Papers: none; metrics are in Prometheus' text format.
Command: ./launch.sh serve --artifact=compressed.onnx,dense.onnx --port=8000
Expected: a page at http://127.0.0.1:8000 to try images or sentences on, and the interface at /docs.
Cost: none; it serves until it is stopped, and finishes what it took.

POST /predict takes {"inputs": [...]} in the network's shape, /image the bytes of an image file,
/text {"text": "..."}. The first file is asked, the others answer beside it. GET /healthz and
/metrics watch the service. JAX is not imported.
"""

import os
import pathlib
import socket
import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError

FLAGS = absl_flags.FLAGS
OWN = ('artifact', 'host', 'port', 'token_file', 'max_body', 'max_queue', 'max_batch', 'timeout')


def main(config):
  del config
  import uvicorn

  from lepton_jax.deploy import service
  if not FLAGS.artifact:
    raise UserError('--artifact=FILE.onnx names what to serve; ./launch.sh export writes it')
  token = os.environ.get('LEPTON_TOKEN', '')
  if FLAGS.token_file:
    try:
      token = pathlib.Path(FLAGS.token_file).expanduser().read_text().strip()
    except OSError as error:
      raise UserError(f'--token_file={FLAGS.token_file} cannot be read: {error}') from None
    if not token:
      raise UserError(f'--token_file={FLAGS.token_file} is empty')
  limits = service.Limits(FLAGS.max_body, FLAGS.max_queue, FLAGS.max_batch, FLAGS.timeout)
  app = service.make_app(FLAGS.artifact.split(','), token, limits)
  try:
    link = socket.create_server((FLAGS.host, FLAGS.port), backlog=1024)
  except OSError as error:
    raise UserError(f'cannot listen at --host={FLAGS.host} --port={FLAGS.port}: {error}') from None
  print(f'http://{FLAGS.host}:{link.getsockname()[1]}', flush=True)
  settings = uvicorn.Config(app, log_level='warning', access_log=False,
                            limit_concurrency=max(1000, 4 * FLAGS.max_queue),
                            timeout_graceful_shutdown=int(FLAGS.timeout) + 1)
  uvicorn.Server(settings).run(sockets=[link])
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('artifact', '', 'ONNX files, comma-separated; the first is asked')
  absl_flags.DEFINE_string('host', '127.0.0.1', 'address to listen at')
  absl_flags.DEFINE_integer('port', 8000, 'port to listen at', 0, 65535)
  absl_flags.DEFINE_string('token_file', '', 'file with a bearer token that requests must carry; '
                                             'so does the variable LEPTON_TOKEN')
  absl_flags.DEFINE_integer('max_body', 1_000_000, 'bytes of a request', lower_bound=1)
  absl_flags.DEFINE_integer('max_queue', 256, 'requests that may wait', lower_bound=1)
  absl_flags.DEFINE_integer('max_batch', 64, 'examples of one call', lower_bound=1)
  absl_flags.DEFINE_float('timeout', 10.0, 'seconds until a request is given up', lower_bound=0.01)
  sys.exit(flags.run(main, __doc__, OWN))
