"""A page in headless Chromium, driven through a pipe by its DevTools protocol."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
                None)


class Page:
  """One open page. Mouse and keyboard go through the browser, as a person's do."""

  def __init__(self, write, read):
    self._write, self._read, self._numbers, self._session = write, read, itertools.count(1), {}
    self.problems = []

  def call(self, method, **parameters):
    """The answer to a command of the protocol; what the page complains of goes to `problems`."""
    number = next(self._numbers)
    message = dict(id=number, method=method, params=parameters, **self._session)
    self._write.write(json.dumps(message).encode() + b'\0')
    self._write.flush()
    return self._wait(lambda found: found.get('id') == number)['result']

  def _wait(self, wanted):
    while True:
      found = json.loads(self._next())
      assert 'error' not in found, found
      if found.get('method') in ('Runtime.exceptionThrown', 'Log.entryAdded'):
        self.problems.append(found['params'])
      if wanted(found):
        return found

  def _next(self):
    content = b''
    while not content.endswith(b'\0'):
      byte = self._read.read(1)
      assert byte, 'the browser has ended'
      content += byte
    return content[:-1]

  def open(self, path):
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    self._session = dict(sessionId=session)
    for domain in ('Page', 'Runtime', 'Log'):
      self.call(f'{domain}.enable')
    self.call('Page.navigate', url=path.as_uri())
    self._wait(lambda found: found.get('method') == 'Page.loadEventFired')

  def ask(self, expression):
    """The value of a JavaScript expression."""
    found = self.call('Runtime.evaluate', expression=expression, returnByValue=True)
    assert 'exceptionDetails' not in found, found
    return found['result'].get('value')

  def place(self, selector):
    """(x, y) of the middle of an element, brought into view."""
    box = self.ask(f'(e => {{ e.scrollIntoView({{block: "center"}}); '
                   f'const r = e.getBoundingClientRect(); '
                   f'return [r.x + r.width / 2, r.y + r.height / 2] }})'
                   f'(document.querySelector({json.dumps(selector)}))')
    return dict(x=box[0], y=box[1])

  def hover(self, selector):
    self.call('Input.dispatchMouseEvent', type='mouseMoved', **self.place(selector))

  def click(self, selector):
    place = self.place(selector)
    for kind in ('mousePressed', 'mouseReleased'):
      self.call('Input.dispatchMouseEvent', type=kind, button='left', clickCount=1, **place)

  def type(self, text):
    self.call('Input.insertText', text=text)


# Chromium reads commands from descriptor 3 and answers on 4.
START = """
import os, sys
ends = [os.dup(int(word)) for word in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
  os.dup2(end, number)
  os.set_inheritable(number, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


@contextlib.contextmanager
def opened(path, home):
  """The Page of a local file; `home` is a folder for the browser's own files."""
  to_browser, from_us = os.pipe()
  from_browser, to_us = os.pipe()
  words = (CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe',
           '--window-size=1400,1000', f'--user-data-dir={home}')
  process = subprocess.Popen(
      [sys.executable, '-c', START, str(to_browser), str(to_us), *words],
      pass_fds=(to_browser, to_us), env=dict(os.environ, HOME=str(home)),
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  os.close(to_browser)
  os.close(to_us)
  with os.fdopen(from_us, 'wb') as write, os.fdopen(from_browser, 'rb') as read:
    try:
      page = Page(write, read)
      page.open(path)
      yield page
    finally:
      process.kill()
      process.wait()
