"""What schedulers are given: a script for SLURM, a manifest for Kubernetes on Google Cloud."""

import json
import math
import re

from lepton_jax.errors import UserError
from lepton_jax.hosts import command

SAVING = 120  # seconds that a run is given to save and end

SBATCH = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --cpus-per-task={cpus}
{options}#SBATCH --time={time}
#SBATCH --signal=TERM@{saving}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log
# SLURM's variables tell the processes of each other: one for each GPU, or one for each machine that
# has none or trains a sweep.
# {saving} s before the time is over, and at a preemption, all save at the same step and end; the
# job then goes back into the queue and goes on there.
# To be sent off from the project's folder: sbatch FILE
export LEPTON_PLATFORM={platform}
./launch.sh train --help >/dev/null  # makes the environment once, in a folder that all nodes see
srun --cpus-per-task={cpus} --kill-on-bad-exit=0 {run}
status=$?
case $status in
  {passing})  # stopped, or lost a process; a job that was cancelled is no longer running
    [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ] && scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $status
"""


def sbatch(arguments, *, name, nodes, gpus, cpus, time, partition, account):
  """The text of an sbatch file that runs `./launch.sh` with these arguments on `nodes` machines.

  Raises UserError for a sweep that would leave GPUs idle.
  """
  trains = arguments[:1] == ['train']
  if not trains and gpus > 1 and '--executor=devices' not in arguments:
    raise UserError(f'--gpus={gpus}: {" ".join(arguments[:1])} uses one of them; a sweep uses all '
                    f'with --executor=devices after --')
  tasks = gpus if trains and gpus else 1
  asked = {'gpus-per-node': gpus or '', 'partition': partition, 'account': account}
  options = ''.join(f'#SBATCH --{flag}={value}\n' for flag, value in asked.items() if value)
  # srun gives the highest status of its processes: an end by a signal is above those of mistakes.
  return SBATCH.format(name=name, nodes=nodes, tasks=tasks, cpus=cpus, options=options, time=time,
                       saving=SAVING, platform='cuda' if gpus else 'cpu',
                       run=command.launch(arguments), passing='75 | 134 | 137 | 143')


def manifest(arguments, *, name, image, accelerator, topology, chips, retries):
  """A headless Service and an indexed Job that train on a TPU slice of GKE, as JSON documents.

  As in https://cloud.google.com/kubernetes-engine/docs/how-to/tpus: GKE tells each pod of such a
  Job its place. `chips` is how many a machine of the node pool has; `image` has the project as its
  working directory. kubectl reads JSON as it reads YAML. Raises UserError where the slice cannot
  be cut into machines.
  """
  if not re.fullmatch(r'\d+x\d+(x\d+)?', topology):
    raise UserError(f'--topology={topology}: allowed is that of a node pool, such as 4x4 or 2x2x4')
  total = math.prod(map(int, topology.split('x')))
  if total % chips:
    raise UserError(f'--topology={topology} has {total} chips, which --chips={chips} a machine '
                    f'does not divide')
  hosts = total // chips
  container = dict(
      name='train', image=image, command=['bash', '-c', f'exec {command.launch(arguments)}'],
      env=[dict(name='LEPTON_PLATFORM', value='tpu')], ports=[dict(containerPort=8482)],
      resources={kind: {'google.com/tpu': chips} for kind in ('requests', 'limits')})
  pod = dict(subdomain=name, restartPolicy='Never', terminationGracePeriodSeconds=SAVING,
             nodeSelector={'cloud.google.com/gke-tpu-accelerator': accelerator,
                           'cloud.google.com/gke-tpu-topology': topology}, containers=[container])
  # A user's mistake, or training that diverged, is not repeated.
  mistake = dict(action='FailJob',
                 onExitCodes=dict(containerName='train', operator='In', values=[1, 2]))
  service = dict(apiVersion='v1', kind='Service', metadata=dict(name=name),
                 spec=dict(clusterIP='None', selector={'job-name': name}))
  job = dict(apiVersion='batch/v1', kind='Job', metadata=dict(name=name),
             spec=dict(completionMode='Indexed', completions=hosts, parallelism=hosts,
                       backoffLimit=retries * hosts, podFailurePolicy=dict(rules=[mistake]),
                       template=dict(spec=pod)))
  return '\n---\n'.join(json.dumps(part, indent=2) for part in (service, job)) + '\n'
