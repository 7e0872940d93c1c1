"""Prints a manifest that trains on a TPU slice of Google Kubernetes Engine.

Question: how does an experiment run on a cluster of containers?
Paper: none; https://cloud.google.com/kubernetes-engine/docs/how-to/tpus has what it prints.
Command: ./launch.sh gke --image=REGISTRY/lepton --topology=4x4 \\
    -- train --model=resnet20 --dataset=cifar10 --runs_dir=gs://BUCKET/runs | kubectl apply -f -
Expected: a Service and an indexed Job, one pod a machine, started again where one is lost.
Cost: nothing; it only prints.

The image has this project, with its environment, as its working directory.
"""

import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError
from lepton_jax.hosts import batch

FLAGS = absl_flags.FLAGS
OWN = ('name', 'image', 'accelerator', 'topology', 'chips', 'retries')


def main(words):
  if not FLAGS.image:
    raise UserError('--image is missing: a container image that holds this project')
  print(batch.manifest(words, **{name: FLAGS[name].value for name in OWN}), end='')
  return 0


if __name__ == '__main__':
  absl_flags.DEFINE_string('name', 'lepton', 'of the job and its service')
  absl_flags.DEFINE_string('image', '', 'container image')
  absl_flags.DEFINE_string('accelerator', 'tpu-v5-lite-podslice', "of the node pool, GKE's name")
  absl_flags.DEFINE_string('topology', '4x4', 'chips of the slice')
  absl_flags.DEFINE_integer('chips', 4, 'of each machine', lower_bound=1)
  absl_flags.DEFINE_integer('retries', 5, 'how often all machines are started again', lower_bound=0)
  sys.exit(flags.run(main, __doc__, OWN, files=True))
