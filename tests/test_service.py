"""Predictions over HTTP, and what clients do wrong."""

import contextlib
import http.client
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
from PIL import Image

from lepton_jax import folder, run
from lepton_jax.config import Config
from lepton_jax.deploy import exports, runtime, traced
from lepton_jax.deploy import service as service_lib
from lepton_jax.errors import UserError
from tests.browser import CHROMIUM
from tests.test_deploy import trained_of
from tests.test_text import make_table

ROOT = pathlib.Path(__file__).parents[1]


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


@contextlib.contextmanager
def serving(*options):
  """(port, process) of a service in a process of its own."""
  port = free_port()
  process = subprocess.Popen(
      [sys.executable, '-m', 'experiments.serve', f'--port={port}', *options], cwd=ROOT,
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
  try:
    for _ in range(600):
      with contextlib.suppress(OSError):
        socket.create_connection(('127.0.0.1', port), 1).close()
        break
      assert process.poll() is None, process.stderr.read()
      time.sleep(0.05)
    yield port, process
  finally:
    process.terminate()
    process.communicate(timeout=30)


def ask(port, path, body=None, **headers):
  """(status, what was answered, headers)."""
  link = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
  content = json.dumps(body).encode() if isinstance(body, dict) else body
  link.request('GET' if body is None else 'POST', path, content,
               {'Content-Type': 'application/json'} | headers)
  response = link.getresponse()
  answer = response.read().decode()
  with contextlib.suppress(ValueError):
    answer = json.loads(answer)
  return response.status, answer, response.headers


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """{name: (path, its folder.Trained)} of exported networks."""
  small = Config().replace(model='mlp', dataset='digits', tensorboard=False, pictures=False)
  place, found = tmp_path_factory.mktemp('served'), {}
  with pytest.MonkeyPatch.context() as patch:
    for name, model in (('image', 'lenet5'), ('text', 'text_cnn')):
      trained = trained_of(small, patch, model)
      exports.write(trained, 'onnx', place / f'{name}.onnx')
      found[name] = place / f'{name}.onnx', trained
  return found


@pytest.fixture(scope='module')
def service(files):
  with serving(f'--artifact={files["image"][0]}', '--max_body=20000') as (port, process):
    yield port, process


def test_answers_are_those_of_the_network_and_jax_is_not_there(files, service):
  path, trained = files['image']
  inputs = traced.samples(trained, 3)
  outputs = np.asarray(traced.reference(trained, inputs), np.float64)
  shares = np.exp(outputs - outputs.max(1, keepdims=True))
  shares /= shares.sum(1, keepdims=True)
  for one, wanted in zip(inputs, shares):
    status, answer, _ = ask(service[0], '/predict', dict(inputs=one.tolist()))
    assert status == 200 and answer['class'] == str(wanted.argmax())
    for name, share in answer['probabilities'].items():
      assert abs(share - wanted[int(name)]) < 1e-4
  maps = pathlib.Path(f'/proc/{service[1].pid}/maps')
  assert not maps.exists() or 'jaxlib' not in maps.read_text()


def test_an_image_is_what_its_pixels_are(files, service):
  path, trained = files['image']
  one = traced.samples(trained, 1)[0]
  buffer = io.BytesIO()
  Image.fromarray(one[..., 0]).save(buffer, 'PNG')
  image = ask(service[0], '/image', buffer.getvalue())[1]
  pixels = ask(service[0], '/predict', dict(inputs=one.tolist()))[1]
  assert image['probabilities'] == pixels['probabilities']


WRONG = [('/predict', b'{"inputs": [1,', 422, 'JSON'), ('/predict', b'{}', 422, 'inputs'),
         ('/predict', dict(inputs=[[1, 2], [3]]), 422, 'differ in length'),
         ('/predict', dict(inputs=[1, 2]), 422, 'wanted is [16, 16, 1]'),
         ('/predict', dict(inputs=np.full((16, 16, 1), 256).tolist()), 422, '0 to 255'),
         ('/predict', dict(inputs=np.full((16, 16, 1), 0.5).tolist()), 422, 'whole numbers'),
         ('/predict', dict(inputs=[['a']]), 422, 'to be numbers'),
         ('/predict', b'{"inputs": [NaN]}', 422, 'wanted is'),
         ('/predict', b'[' * 10_000, 400, 'parsing'), ('/image', b'no image', 422, 'known format'),
         ('/text', dict(text='a'), 422, 'reads no text'), ('/text', dict(text=3), 422, 'string'),
         ('/predict', b'0' * 20_001, 413, '20,000 bytes'), ('/nowhere', b'', 404, 'Not Found')]


@pytest.mark.parametrize('path,body,status,reason', WRONG)
def test_what_clients_do_wrong_is_told(service, path, body, status, reason):
  got, answer, _ = ask(service[0], path, body)
  assert got == status and reason in json.dumps(answer, ensure_ascii=False)


def test_a_body_without_a_length_is_counted_as_it_comes(service):
  with socket.create_connection(('127.0.0.1', service[0])) as link:
    link.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n')
    with contextlib.suppress(OSError):
      for _ in range(40):
        link.sendall(b'3e8\r\n' + b'0' * 1000 + b'\r\n')
    assert b' 413 ' in link.recv(200)


def test_metrics_count_every_answer(service):
  def count(status):
    text = ask(service[0], '/metrics')[1]
    lines = [line for line in text.splitlines()
             if line.startswith('lepton_requests_total{path="/text"') and f'"{status}"' in line]
    return float(lines[0].split()[-1]) if lines else 0.0

  before = count(422)
  for _ in range(3):
    ask(service[0], '/text', dict(text='a'))
  assert count(422) == before + 3
  assert ask(service[0], '/healthz')[1]['status'] == 'ok'
  assert 'image' in ask(service[0], '/')[1]


def test_texts_of_unequal_length_share_batches(files):
  path, trained = files['text']
  session = runtime.session(str(path))
  words = trained.data.vocabulary
  texts = [' '.join(words[number] for number in numbers)
           for numbers in ([2, 3], [4, 5, 6, 7, 8], [9], [10, 11, 12])] * 8
  with serving(f'--artifact={path}') as (port, _):
    found = {}
    threads = [threading.Thread(target=lambda i=i, text=text: found.update(
        {i: ask(port, '/text', dict(text=text))[1]})) for i, text in enumerate(texts)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  for i, text in enumerate(texts):
    numbers = np.array([[words.index(word) for word in text.split()]], np.int32)
    logits = runtime.predict(session, numbers)[0]
    assert found[i]['class'] == trained.data.classes[logits.argmax()]


def test_word_pieces_are_read_as_in_training(files, tmp_path):
  model, path = onnx.load(files['text'][0]), tmp_path / 'pieces.onnx'
  words = ['<pad>', '<unk>', 'low', '##est', '##er']
  onnx.helper.set_model_props(model, {entry.key: entry.value for entry in model.metadata_props} | {
      'vocabulary': json.dumps(words), 'tokenizer': 'word_pieces'})
  onnx.save(model, path)
  assert service_lib.Model(path).read_text('Lowest slow lower').tolist() == [2, 3, 1, 2, 4]


def test_words_with_their_ngrams_are_read_as_in_training(tmp_path):
  config = Config().replace(
      model='lstm_classifier', tokenizer='character_ngrams', embedding=8, hidden=8, epochs=1,
      batch_size=8, quantize_weight_bits=4, runs_dir=str(tmp_path), tensorboard=False,
      pictures=False,
      **make_table(tmp_path / 't.tsv')).check()
  content = (tmp_path / 't.tsv').read_text()
  for word in ('great', 'warm', 'cold'):
    content = content.replace(word, f'{word}est')
  (tmp_path / 't.tsv').write_text(content)
  run.train(config)
  trained, path = folder.load(tmp_path / config.name()), tmp_path / 'net.onnx'
  found = exports.write(trained, 'onnx', path)
  assert found['bytes'] < 4 * found['num_parameters'] + 40_000  # the table is there once
  packed = exports.write(trained, 'lepton', tmp_path / 'net.lepton')
  assert packed['largest_error'] < 2e-3 * packed['largest_output']
  model, tests = service_lib.Model(path), trained.data.splits['test'][0]
  read = [model.read_text(text) for text in ('a grimmest film', 'lovely')]
  np.testing.assert_array_equal(trained.read(['a grimmest film'])[0], read[0])
  assert model.answer(read)[0]['class'] == trained.data.classes[trained.predict(
      ['a grimmest film'])[0]]
  with pytest.raises(UserError, match='has no word'):
    trained.predict([''])
  assert [one.shape for one in read] == [(3, 25), (1, 25)] and read[0].dtype == tests.dtype
  assert list(read[0][:2, 0]) == [1, 1] and read[0][1, 1:].any()  # an unknown word, spelt alike
  # Padding changes no answer: texts of unequal length share a batch.
  together, alone = model.answer(read), [model.answer([one])[0] for one in read]
  for one, other in zip(together, alone):
    np.testing.assert_allclose(list(one['probabilities'].values()),
                               list(other['probabilities'].values()), atol=2e-6)


def test_a_token_a_full_queue_and_a_stop(files):
  """401 without the token; 503 with a time to come back while all places are taken, and 200 again
  afterwards; a stop finishes what was taken."""
  options = ['--max_queue=1', '--max_batch=1']
  path = files['image'][0]
  body = dict(inputs=np.zeros((16, 16, 1), int).tolist())
  secret = path.with_name('token')
  secret.write_text('s3cret\n')
  with serving(f'--artifact={path}', f'--token_file={secret}', *options) as (port, process):
    assert ask(port, '/predict', body)[0] == 401
    assert ask(port, '/predict', body, Authorization='Bearer s3cret2')[0] == 401
    assert ask(port, '/healthz')[0] == 200
    asked = lambda: ask(port, '/predict', body, Authorization='Bearer s3cret')
    assert asked()[0] == 200
    found = []
    threads = [threading.Thread(target=lambda: found.extend(asked() for _ in range(30)))
               for _ in range(16)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    refused = [headers for status, _, headers in found if status == 503]
    assert {status for status, *_ in found} == {200, 503}
    assert all(headers['Retry-After'] == '1' for headers in refused)
    assert asked()[0] == 200
    last = threading.Thread(target=lambda: found.append(asked()))
    last.start()
    last.join()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert found[-1][0] == 200


def test_steps_words_and_numbers_have_bounds(files):
  with serving(f'--artifact={files["text"][0]}') as (port, _):
    for inputs, words in (([2] * 1001, '1,001 steps; allowed are 1,000'), ([0, 0], 'no word'),
                          ([1, 99], '0 to 19'), ([], 'shape [0]')):
      status, answer, _ = ask(port, '/predict', dict(inputs=inputs))
      assert status == 422 and words in answer['detail']
    assert ask(port, '/predict', dict(inputs=[2] * 1000))[0] == 200
    body = b'POST /text HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{'
    with socket.create_connection(('127.0.0.1', port)) as link:
      link.sendall(body)
      assert ask(port, '/text', dict(text='2 3'))[0] == 200  # others are answered meanwhile


def test_a_body_that_lingers_is_given_up(files):
  with serving(f'--artifact={files["image"][0]}', '--timeout=0.5') as (port, _):
    with socket.create_connection(('127.0.0.1', port)) as link:
      link.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{')
      assert b' 408 ' in link.recv(200)


def test_one_bad_example_leaves_its_batch_alone():
  class Fragile:
    name, bytes = 'fragile', 1

    @staticmethod
    def answer(examples):
      if any(one == 13 for one in examples):
        raise RuntimeError('unlucky')
      return [dict(value=one) for one in examples]

  found = service_lib.Batches([Fragile], service_lib.Limits())._answers([1, 13, 2])
  assert [one[0]['value'] for one in (found[0], found[2])] == [1, 2]
  assert isinstance(found[1], RuntimeError)


def test_files_that_cannot_be_served_are_told(files):
  both = f'--artifact={files["image"][0]},{files["text"][0]}'
  for options, words in ((['--artifact='], 'names what to serve'),
                         (['--artifact=none.onnx'], 'is not there'), ([both], 'different inputs')):
    done = subprocess.run([sys.executable, '-m', 'experiments.serve', *options], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 1 and words in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_the_page_shows_both_networks_in_a_browser(files, tmp_path):
  """The address carries a sentence, which the page asks both networks about."""
  path = files['text'][0]
  dense = shutil.copyfile(path, path.with_name('dense.onnx'))
  with serving(f'--artifact={path},{dense}') as (port, _):
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}',
         '--virtual-time-budget=5000', '--dump-dom', f'http://127.0.0.1:{port}/?text=2+3'],
        capture_output=True, text=True, timeout=120, env=dict(os.environ, HOME=str(tmp_path)))
  for name in ('text.onnx: ', 'dense.onnx: '):
    assert name in done.stdout
  assert done.stdout.count('class="bar"') == 4
