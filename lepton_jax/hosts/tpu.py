"""Cloud TPU slices: created, set up, trained on, followed, and created again after preemption.

All is done by `gcloud compute tpus`, as in https://cloud.google.com/tpu/docs/queued-resources.
On each worker the project lies in ~/lepton; a run leaves lepton.log, lepton.pid and, at its end,
its exit status in lepton.exit.
"""

import re
import tempfile
import time
import typing

from lepton_jax import cluster
from lepton_jax.errors import UserError
from lepton_jax.hosts import command

# https://cloud.google.com/tpu/docs/runtimes
RUNTIMES = {'v6e': 'v2-alpha-tpuv6e', 'v5p': 'v2-alpha-tpuv5', 'v5litepod': 'v2-alpha-tpuv5-lite'}
OLDER = 'tpu-ubuntu2204-base'
# The system's Python is older than what the project needs; uv brings its own.
READY = ('export PATH="$HOME/.local/bin:$PATH"; '
         'command -v uv >/dev/null || python3 -m pip install --quiet --user uv; ')
# Ends that are nobody's mistake: lost another process, aborted with it, killed, stopped.
PASSING = (cluster.LOST, 134, 137, 143)
OVER = ('FAILED', 'SUSPENDING', 'SUSPENDED', 'DELETING')
ASKED = 5  # times in a row that gcloud may fail to say how a slice is


class Slice(typing.NamedTuple):
  """A TPU slice: `type` such as v5litepod-16, `runtime` the software of its machines ('': by type).

  The queued resource and its node have the same name.
  """
  name: str
  zone: str
  type: str = ''
  runtime: str = ''
  spot: bool = False
  project: str = ''


class Tpu:
  """What can be done with a Slice, by commands of a command.Shell."""

  def __init__(self, slice, shell, poll=30.0):
    self.slice, self.shell, self._poll = slice, shell, poll

  def create(self):
    """Asks for the slice and waits until its machines run; raises UserError if it is refused."""
    self.check_type()
    name, kind = self.slice.name, self.slice.type
    runtime = self.slice.runtime or RUNTIMES.get(kind.partition('-')[0], OLDER)
    self.shell.run(*self._queued('create', name), f'--node-id={name}',
                   f'--accelerator-type={kind}', f'--runtime-version={runtime}',
                   *['--spot'] * self.slice.spot)
    while (state := self.state()) != 'ACTIVE' and not self.shell.dry_run:
      if state in OVER:
        raise UserError(f'{name} cannot be had: its state is {state}')
      time.sleep(self._poll)

  def check_type(self):
    """Raises UserError unless --type is one of a slice."""
    if not re.fullmatch(r'v\d+[a-z]*-\d+', self.slice.type):
      raise UserError(f'--type={self.slice.type}: allowed is a type of slice, such as '
                      f'v5litepod-16 or v6e-8')

  def state(self):
    """State of the queued resource, such as WAITING_FOR_RESOURCES or ACTIVE.

    Raises UserError if gcloud does not say it, several times in a row: nothing is deleted or
    created on a guess.
    """
    for _ in range(ASKED):
      state = self.shell.read(*self._queued('describe', self.slice.name),
                              '--format=value(state.state)').strip()
      if state or self.shell.dry_run:
        return state
      time.sleep(self._poll)
    raise UserError(f'gcloud does not say how {self.slice.name} is; what it said is above')

  def delete(self):
    """Gives the slice back, with all that is on its disks."""
    self.shell.run(*self._queued('delete', self.slice.name), '--force', '--quiet')

  def setup(self):
    """Brings the working tree and an environment with JAX for TPUs to every worker."""
    self.sync()
    self.ssh(f'{READY}cd lepton && {command.launch(["train", "--help"], **self._variables())} '
             '>/dev/null')

  def sync(self):
    """Brings the working tree to every worker."""
    tree, name = command.revision()
    archive = f'{tempfile.gettempdir()}/lepton-{name}.tar.gz'
    self.shell.run('git', '-C', str(command.ROOT), 'archive', '--format=tar.gz', '-o', archive,
                   tree)
    self.shell.run(*self._vm('scp', archive, f'{self.slice.name}:lepton.tar.gz'), '--worker=all')
    # Runs in the project's folder, those of a --runs_dir that is not elsewhere, stay.
    self.ssh('mkdir -p lepton && find lepton -mindepth 1 -maxdepth 1 ! -name runs '
             '-exec rm -rf {} + && tar -xzf lepton.tar.gz -C lepton')

  def start(self, arguments):
    """Starts `./launch.sh` with these arguments on every worker, detached from this machine.

    Raises UserError where an earlier run still goes on.
    """
    variables = dict(self._variables(), LEPTON_REVISION=command.revision()[1])
    run = command.launch(arguments, **variables)
    self.ssh('if kill -0 $(cat lepton.pid 2>/dev/null) 2>/dev/null; then '
             'echo "a run goes on here; ./launch.sh tpu stop ends it"; exit 1; fi')
    self.sync()
    self.ssh('rm -f lepton.exit lepton.stopped; nohup setsid bash -c '
             f"{_quoted(f'{READY}cd lepton && {run}; echo $? >~/lepton.exit')} "
             '>lepton.log 2>&1 </dev/null & echo $! >lepton.pid')

  def follow(self, worker='0'):
    """Shows what a worker printed, until its run ends."""
    self.shell.status(*self._ssh('tail -n +1 -F --pid=$(cat lepton.pid) lepton.log', worker))

  def ends(self):
    """Exit statuses of the run on the workers that answer, None where it still goes on."""
    return self._asked('exit', 'cat lepton.exit')

  def stop(self):
    """Asks the run on every worker to save and end; it is not begun again."""
    self.ssh('touch lepton.stopped; pkill -TERM -P $(cat lepton.pid)')

  def run(self, arguments, retries):
    """Runs to the end and returns the exit status.

    After a preemption, or where a process was lost, all starts again, at most so many times: on
    new machines if the old ones are gone. What was trained until then must be in a folder that
    outlives them. A Ctrl-C here leaves the run alone.
    """
    if retries:
      self.check_type()
    self.start(arguments)
    try:
      for left in range(retries, -1, -1):
        ends = self._followed()
        if self.shell.dry_run or ends and not any(ends):
          return 0
        wrong = [code for code in ends if code and code not in PASSING]
        if wrong or not left or any(self._asked('stopped', 'test -e lepton.stopped && echo 1')):
          return wrong[0] if wrong else max([*filter(None, ends), cluster.LOST])
        if self.state() in OVER:
          self.delete()
          self.create()
          self.setup()
        else:
          self.shell.status(*self._ssh('pkill -KILL -P $(cat lepton.pid); sleep 1'))
        self.start(arguments)
    except KeyboardInterrupt:
      raise UserError('the run is no longer followed and goes on; ./launch.sh tpu logs shows it, '
                      'and stop ends it') from None

  def _followed(self):
    """The `ends` of the run when it is over: of those workers that answer, [] for lost machines."""
    while True:
      self.follow()
      for _ in range(ASKED):
        ends = self.ends()
        if self.shell.dry_run or ends and None not in ends or self.state() in OVER:
          return ends
        time.sleep(self._poll)
      if not ends or any(code is not None for code in ends):
        return ends  # machines that do not answer, or some processes that wait for lost ones

  def _asked(self, name, line):
    """What a line of shell prints on each worker that answers, as a number or None."""
    said = self.shell.read(*self._ssh(f'echo lepton-{name}=$({line} 2>/dev/null)'))
    return [int(code) if code else None for code in re.findall(rf'lepton-{name}=(\d*)', said)]

  def ssh(self, text):
    """Runs a line of shell on every worker."""
    self.shell.run(*self._ssh(text))

  def _variables(self):
    return dict(LEPTON_PLATFORM='tpu', LEPTON_VENV='../lepton-venv')

  def _ssh(self, text, worker='all'):
    return *self._vm('ssh', self.slice.name), f'--worker={worker}', f'--command={text}'

  def _queued(self, *words):
    return 'gcloud', 'compute', 'tpus', 'queued-resources', *words, *self._place()

  def _vm(self, *words):
    return 'gcloud', 'compute', 'tpus', 'tpu-vm', *words, *self._place()

  def _place(self):
    project = [f'--project={self.slice.project}'] * bool(self.slice.project)
    return f'--zone={self.slice.zone}', *project


def _quoted(text):
  """One word for a shell inside which $HOME and $? are seen by the shell that runs it."""
  return "'" + text.replace("'", "'\\''") + "'"
