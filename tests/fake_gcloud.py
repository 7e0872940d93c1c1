"""A `gcloud` for tests: records its arguments, and runs what a slice's workers are told here.

Below FAKE_TPU lie `calls` (a line of JSON each), `state` of the queued resource, and a home folder
for each of WORKERS workers, while the slice exists. Processes of a worker find each other as SLURM
would tell them: what Google's machines are told comes from a metadata server.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

WORKERS = 2
ROOT = pathlib.Path(os.environ['FAKE_TPU'])


def home(worker):
  return ROOT / f'worker-{worker}'


def create():
  for worker in range(WORKERS):
    program = home(worker) / 'lepton-venv' / 'bin' / 'python'
    program.parent.mkdir(parents=True)
    # An environment that is there already: nothing is installed into it.
    program.write_text('#!/bin/sh\ncase "$*" in "-m pip"*) exit 0;; esac\n'
                       f'exec {sys.executable} "$@"\n')
    program.chmod(0o755)
  (ROOT / 'state').write_text('ACTIVE')


def ssh(worker, text):
  variables = dict(SLURM_JOB_ID='1', SLURM_STEP_NODELIST='127.0.0.1', SLURM_LOCALID='0',
                   SLURM_NTASKS=str(WORKERS), SLURM_PROCID=str(worker), HOME=str(home(worker)))
  return subprocess.call(['bash', '-c', text], cwd=home(worker), env=dict(os.environ, **variables))


def main(words):
  with (ROOT / 'calls').open('a') as file:
    file.write(json.dumps(words) + '\n')
  assert words[:2] == ['compute', 'tpus'] and '--zone=here' in words
  kind, action, *words = words[2:]
  options = dict(word[2:].split('=', 1) for word in words if word.startswith('--') and '=' in word)
  names = [word for word in words if not word.startswith('--')]
  if (kind, action) == ('queued-resources', 'create'):
    return create()
  if (kind, action) == ('queued-resources', 'delete'):
    for worker in range(WORKERS):
      shutil.rmtree(home(worker), ignore_errors=True)
    return (ROOT / 'state').unlink()
  if (kind, action) == ('queued-resources', 'describe'):
    assert options == dict(zone='here', format='value(state.state)')
    state = ROOT / 'state'
    return print(state.read_text()) if state.exists() else 1
  workers = range(WORKERS) if options['worker'] == 'all' else [int(options['worker'])]
  if (ROOT / 'state').read_text() != 'ACTIVE':
    return 255
  if action == 'scp':
    source, (_, target) = names[0], names[1].split(':')
    for worker in workers:
      shutil.copyfile(source, home(worker) / target)
    return 0
  assert (kind, action) == ('tpu-vm', 'ssh')
  return max(ssh(worker, options['command']) for worker in workers)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
