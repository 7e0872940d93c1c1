"""Trains on a Cloud TPU slice, however many machines it has, from this one.

Question: how does an experiment come to a TPU, and its result back, with no login by hand?
Paper: none; https://cloud.google.com/tpu/docs/queued-resources has the commands that it prints.
Command: ./launch.sh tpu create --name=mine --zone=us-west4-a --type=v5litepod-16 --spot
  ./launch.sh tpu setup --name=mine --zone=us-west4-a
  ./launch.sh tpu run --name=mine --zone=us-west4-a --type=v5litepod-16 --spot --retry=5 \\
    -- train --model=resnet20 --dataset=cifar10 --data_dir=gs://BUCKET/data \\
    --runs_dir=gs://BUCKET/runs
  ./launch.sh tpu delete --name=mine --zone=us-west4-a
Expected: the log of worker 0, then the exit status of the run; the run folder is in gs://.
Cost: that of the slice until `delete`; Google's prices by type and zone.

create: asks for the slice and waits for it. setup: brings the working tree and an environment.
run: brings the working tree as it is now, starts what comes after -- on all workers, detached, and
follows it; --retry=N begins again after a preemption, from the last checkpoint in --runs_dir.
status, logs, stop (saves and ends), delete do what they say. --dry_run prints every command.
"""

import sys

from absl import flags as absl_flags

from lepton_jax import flags
from lepton_jax.errors import UserError
from lepton_jax.hosts import command, tpu

FLAGS = absl_flags.FLAGS
OWN = ('name', 'zone', 'type', 'runtime', 'spot', 'project', 'worker', 'retry', 'poll', 'dry_run')
ACTIONS = ('create', 'setup', 'run', 'status', 'logs', 'stop', 'delete')


def main(words):
  action, arguments = (words[0], words[1:]) if words else ('', [])
  if action not in ACTIONS:
    raise UserError(f'./launch.sh tpu {action}: allowed are {", ".join(ACTIONS)}')
  if arguments and action != 'run':
    raise UserError(f'./launch.sh tpu {action}: unexpected {" ".join(arguments)}')
  for name in ('name', 'zone'):
    if not FLAGS[name].value:
      raise UserError(f'--{name} is missing: slices are told apart by --name and --zone')
  slice = tpu.Slice(FLAGS.name, FLAGS.zone, FLAGS.type, FLAGS.runtime, FLAGS.spot, FLAGS.project)
  one = tpu.Tpu(slice, command.Shell(FLAGS.dry_run), FLAGS.poll)
  if action == 'run':
    return one.run(arguments, FLAGS.retry)
  if action == 'logs':
    return one.follow(FLAGS.worker)
  if action == 'status':
    state, ends = one.state(), one.ends()
    if not FLAGS.dry_run:
      print(f'{FLAGS.name}: {state}; exit statuses of the last run, in no order: {ends} '
            f'(None: it goes on)')
    return 0
  return getattr(one, action)()


if __name__ == '__main__':
  absl_flags.DEFINE_string('name', '', 'of the queued resource and its node')
  absl_flags.DEFINE_string('zone', '', 'where it is, such as us-west4-a')
  absl_flags.DEFINE_string('type', '', 'create, run --retry: type of slice, such as v5litepod-16, '
                           'v6e-8, v4-32')
  absl_flags.DEFINE_string('runtime', '', "create: software version of its machines; '': by type")
  absl_flags.DEFINE_bool('spot', False, 'create: cheaper, and may be taken away at any time')
  absl_flags.DEFINE_string('project', '', "Google Cloud project; '': that of gcloud config")
  absl_flags.DEFINE_string('worker', '0', 'logs: whose')
  absl_flags.DEFINE_integer('retry', 0, 'run: how often to begin again after a preemption or a '
                            'lost process, on a new slice of --type if need be',
                            lower_bound=0)
  absl_flags.DEFINE_float('poll', 30.0, 'seconds between looks at a state', lower_bound=0.1)
  absl_flags.DEFINE_bool('dry_run', False, 'print the commands and run none')
  sys.exit(flags.run(main, __doc__, OWN, files=True))
