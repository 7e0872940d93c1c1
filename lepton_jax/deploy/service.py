"""Predictions over HTTP by ONNX Runtime; JAX is not imported.

Requests that wait while a batch is computed make the next one. Whatever a client does wrong is
answered by a 4xx with a reason, a full queue by 503 and a time to come back.
"""

import asyncio
import contextlib
import hmac
import io
import json
import pathlib
import time
import typing

import fastapi
import numpy as np
import prometheus_client
import pydantic
from fastapi import responses

from lepton_jax.deploy import runtime
from lepton_jax.errors import UserError
from lepton_jax.registry import TOKENIZERS

PAGE = pathlib.Path(__file__).with_name('page.html')
MOST_WORDS = 1000  # of a text, or characters; the rest of a text is cut
IMAGES = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP')
MOST_PIXELS = 4096 * 4096  # of an uploaded image, before it is decoded


class Limits(typing.NamedTuple):
  """What a service bears.

  Attributes:
    body: bytes of a request.
    queue: requests that wait; more are answered by 503.
    batch: examples of one call of the network.
    seconds: until a request is given up, answered by 504.
  """
  body: int = 1_000_000
  queue: int = 256
  batch: int = 64
  seconds: float = 10.0


class Example(pydantic.BaseModel):
  """One example in the network's own shape, as nested lists of numbers."""
  inputs: list


class Text(pydantic.BaseModel):
  """One text."""
  text: str


class Model:
  """An ONNX file with what its metadata say of inputs and outputs."""

  def __init__(self, path):
    self._running = runtime.open_file(path)
    if self._running.format != 'onnx':
      raise UserError(f'{path}: only ONNX files are served; ./launch.sh export writes them')
    about = runtime.metadata(path)
    self.name, self.bytes = self._running.path.name, self._running.path.stat().st_size
    self.dtype, self.shape = self._running.dtype, self._running.shape[1:]
    self.classes = json.loads(about.get('classes', '[]'))
    vocabulary = json.loads(about.get('vocabulary', '[]'))
    self.words = {word: number for number, word in enumerate(vocabulary)}
    self.values = about.get('measure') == 'rmse'
    self.by_character = not self.classes and bool(self.words)
    if self.by_character:
      self.classes = vocabulary
      self.numbers = lambda text: np.array([self.words.get(c, 0) for c in text[:MOST_WORDS]],
                                           np.int32)
    else:
      tokenizer = TOKENIZERS.get(about.get('tokenizer', 'words'))()
      self.numbers = tokenizer.numbers(vocabulary, MOST_WORDS)

  def read(self, inputs):
    """One example [...] of lists; raises ValueError that says what was given and is allowed."""
    try:
      array = np.asarray(inputs)
    except ValueError:
      raise ValueError('the lists of inputs differ in length') from None
    if array.dtype.kind not in 'iuf':
      raise ValueError('inputs have to be numbers')
    if array.ndim and array.shape[0] > MOST_WORDS and self.shape[:1] == (None,):
      raise ValueError(f'inputs have {array.shape[0]:,} steps; allowed are {MOST_WORDS:,}')
    fits = array.ndim == len(self.shape) and array.size and all(
        want in (None, size) for want, size in zip(self.shape, array.shape))
    if not fits:
      wanted = [size or 'any' for size in self.shape]
      raise ValueError(f'inputs have shape {list(array.shape)}; wanted is {wanted}')
    if self.dtype.kind in 'iu':
      most = 255 if self.dtype == np.uint8 else max(len(self.words) - 1, 0)
      if (array != np.round(array)).any() or array.min() < 0 or array.max() > most:
        raise ValueError(f'inputs have to be whole numbers from 0 to {most}')
      if self.words and not array.any():
        raise ValueError('inputs are all 0, which stands for no word')
    with np.errstate(over='ignore'):
      array = array.astype(self.dtype)
    if not np.isfinite(array).all():
      raise ValueError(f'inputs have to be finite as {self.dtype}')
    return array

  def read_image(self, content):
    """One example from the bytes of an image file; raises ValueError likewise."""
    from PIL import Image, UnidentifiedImageError
    if len(self.shape) != 3 or self.dtype != np.uint8:
      raise ValueError(f'{self.name} reads no images')
    height, width, channels = self.shape
    try:
      image = Image.open(io.BytesIO(content), formats=IMAGES)
      if image.width * image.height > MOST_PIXELS:
        raise ValueError(f'an image of {image.width}x{image.height} is too large; allowed are '
                         f'{MOST_PIXELS:,} pixels')
      image = image.convert('L' if channels == 1 else 'RGB').resize((width, height))
    except UnidentifiedImageError:
      raise ValueError(f'the body is no image of a known format: {", ".join(IMAGES)}') from None
    except ValueError:
      raise
    except Exception as error:  # decoders have errors of all kinds for damaged files
      raise ValueError(f'the image cannot be read: {error}') from None
    return np.asarray(image, np.uint8).reshape(self.shape)

  def read_text(self, text):
    """One example of word numbers; raises ValueError likewise."""
    if not self.words:
      raise ValueError(f'{self.name} reads no text')
    numbers = self.numbers(text)
    if not len(numbers):
      raise ValueError('the text has no words')
    return numbers

  def answer(self, examples):
    """Answers, as dictionaries or errors, to a list of examples; shorter texts are padded."""
    longest = max(len(one) for one in examples)
    if any(len(one) != longest for one in examples):
      pad = lambda one: np.pad(one, [(0, longest - len(one))] + [(0, 0)] * (one.ndim - 1))
      lengths = [len(one) for one in examples]
      outputs = self._running.answer(np.stack([pad(one) for one in examples]))
    else:
      lengths = [longest] * len(examples)
      outputs = self._running.answer(np.stack(examples))
    return [self.told(one, length) for one, length in zip(outputs, lengths)]

  def told(self, output, length):
    """What one output says; a ValueError, not raised, for one that is no number."""
    if not np.isfinite(output).all():
      return ValueError('the network has no finite answer to these inputs')
    if self.values:
      return dict(values=output.tolist())
    if output.ndim == 2 and self.by_character:
      output = output[length - 1]  # what comes next
    if output.ndim == 2:
      return dict(classes=[self.label(row.argmax()) for row in output[:length]])
    if output.shape == (1,):
      output = np.array([0.0, output[0]])
    shares = np.exp(output - output.max())
    shares /= shares.sum()
    order = shares.argsort()[::-1][:10]
    return {'class': self.label(order[0]),
            'probabilities': {self.label(i): round(float(shares[i]), 6) for i in order}}

  def label(self, number):
    return self.classes[number] if self.classes else str(int(number))


class Batches:
  """Examples that wait, and the task that answers them in batches."""

  def __init__(self, models, limits):
    self._models, self._limits = models, limits
    self.queue = asyncio.Queue(limits.queue)
    self.sizes = prometheus_client.Histogram(
        'lepton_batch_size', 'examples of a call', buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        registry=None)

  async def ask(self, example):
    """The answers of all models; raises asyncio.QueueFull and TimeoutError."""
    future = asyncio.get_running_loop().create_future()
    self.queue.put_nowait((example, future))
    return await asyncio.wait_for(future, self._limits.seconds)

  async def work(self):
    """Answers for ever."""
    loop = asyncio.get_running_loop()
    while True:
      taken = [await self.queue.get()]
      while len(taken) < self._limits.batch and not self.queue.empty():
        taken.append(self.queue.get_nowait())
      waiting = [(example, future) for example, future in taken if not future.done()]
      if waiting:
        self.sizes.observe(len(waiting))
        examples = [example for example, _ in waiting]
        found = await loop.run_in_executor(None, self._answers, examples)
        for (_, future), one in zip(waiting, found):
          if not future.done():
            future.set_exception(one) if isinstance(one, Exception) else future.set_result(one)
      for _ in taken:
        self.queue.task_done()

  def _answers(self, examples):
    """Answers or errors; where a batch fails, each of its examples is asked alone."""
    try:
      return self._together(examples)
    except Exception as error:  # onnxruntime has a class of its own for each mishap
      if len(examples) == 1:
        return [error]
      return [self._answers([one])[0] for one in examples]

  def _together(self, examples):
    answers = []
    for model in self._models:
      began = time.perf_counter()
      found = model.answer(examples)
      took = 1000 * (time.perf_counter() - began) / len(examples)
      about = dict(model=model.name, bytes=model.bytes, ms=round(took, 4))
      answers.append([one if isinstance(one, Exception) else about | one for one in found])
    first_error = lambda one: next((part for part in one if isinstance(part, Exception)), one)
    return [first_error(one) for one in zip(*answers)]


class BodyLimit:
  """Answers 413 as soon as a body is known to be larger than allowed, 408 to one that lingers."""

  def __init__(self, app, most, seconds):
    self._app, self._most, self._seconds = app, most, seconds

  async def __call__(self, scope, receive, send):
    if scope['type'] != 'http':
      return await self._app(scope, receive, send)
    told = dict(scope['headers']).get(b'content-length', b'0')
    if not told.isdigit() or int(told) > self._most:
      return await self._refuse(scope, receive, send)
    parts, size, more, until = [], 0, True, time.monotonic() + self._seconds
    while more:
      try:
        message = await asyncio.wait_for(receive(), until - time.monotonic())
      except TimeoutError:
        return await self._refuse(scope, receive, send, 408,
                                  f'the body did not come within {self._seconds:g} s')
      if message['type'] == 'http.disconnect':
        return None
      parts.append(message.get('body', b''))
      size, more = size + len(parts[-1]), message.get('more_body', False)
      if size > self._most:
        return await self._refuse(scope, receive, send)
    whole = iter([dict(type='http.request', body=b''.join(parts), more_body=False)])

    async def again():
      return next(whole, None) or await receive()

    return await self._app(scope, again, send)

  async def _refuse(self, scope, receive, send, status=413, reason=''):
    reason = dict(detail=reason or f'a body may have {self._most:,} bytes')
    await responses.JSONResponse(reason, status, {'Connection': 'close'})(scope, receive, send)


def make_app(paths, token='', limits=None):
  """The FastAPI application of ONNX files; the first is asked, the others answer beside it.

  With a `token` every prediction and /metrics have to carry it. Raises UserError for files that
  cannot be served, or that read different inputs.
  """
  models, limits = [Model(path) for path in paths], limits or Limits()
  kinds = {(model.dtype.name, model.shape, tuple(model.words), tuple(model.classes))
           for model in models}
  if len(kinds) > 1:
    raise UserError('the files read different inputs or words, or have different classes')
  first, registry = models[0], prometheus_client.CollectorRegistry()
  requests = prometheus_client.Counter('lepton_requests', 'answered requests', ['path', 'status'],
                                       registry=registry)
  seconds = prometheus_client.Histogram('lepton_seconds', 'seconds of a request', ['path'],
                                        registry=registry)
  waiting = prometheus_client.Gauge('lepton_waiting', 'requests that wait', registry=registry)
  state = {}

  @contextlib.asynccontextmanager
  async def lifespan(app):
    state['batches'] = Batches(models, limits)
    registry.register(state['batches'].sizes)
    task = asyncio.create_task(state['batches'].work())
    yield
    await state['batches'].queue.join()  # what was taken is finished
    task.cancel()

  app = fastapi.FastAPI(title='lepton_jax', description=f'Predictions of {first.name}',
                        lifespan=lifespan)
  app.add_middleware(BodyLimit, most=limits.body, seconds=limits.seconds)

  @app.middleware('http')
  async def counted(request, go_on):
    path, began, status = request.url.path, time.perf_counter(), 500
    given = request.headers.get('authorization', '').encode('latin-1')
    try:
      if token and path in GUARDED and not hmac.compare_digest(given, f'Bearer {token}'.encode()):
        response = responses.JSONResponse(dict(detail='a bearer token is wanted'), 401,
                                          {'WWW-Authenticate': 'Bearer'})
      else:
        response = await go_on(request)
      status = response.status_code
      return response
    finally:
      known = path if path in (*GUARDED, *OPEN) else 'other'
      requests.labels(known, status).inc()
      seconds.labels(known).observe(time.perf_counter() - began)

  async def answered(read, given):
    try:
      example = await asyncio.to_thread(read, given)
      answer, *beside = await state['batches'].ask(example)
    except ValueError as error:
      raise fastapi.HTTPException(422, str(error)) from None
    except asyncio.QueueFull:
      raise fastapi.HTTPException(503, 'too many requests wait', {'Retry-After': '1'}) from None
    except TimeoutError:
      raise fastapi.HTTPException(504, f'no answer in {limits.seconds:g} s') from None
    return dict(answer, beside=beside)

  @app.post('/predict')
  async def predict(example: Example):
    """Answers to one example in the network's own shape."""
    return await answered(first.read, example.inputs)

  @app.post('/image')
  async def image(request: fastapi.Request):
    """Answers to an image file, the body of the request; it is resized to the network's size."""
    return await answered(first.read_image, await request.body())

  @app.post('/text')
  async def text(given: Text):
    """Answers to one text."""
    return await answered(first.read_text, given.text)

  @app.get('/healthz')
  async def health():
    """Whether the service answers."""
    return dict(status='ok', model=first.name)

  @app.get('/metrics')
  async def metrics():
    """Counters in Prometheus' text format."""
    waiting.set(state['batches'].queue.qsize())
    return responses.Response(prometheus_client.generate_latest(registry),
                              media_type=prometheus_client.CONTENT_TYPE_LATEST)

  @app.get('/', response_class=responses.HTMLResponse)
  async def page():
    """A page to try the network on."""
    images = len(first.shape) == 3 and first.dtype == np.uint8
    kind = 'text' if first.words else 'image' if images else 'numbers'
    return PAGE.read_text().replace('{{kind}}', kind).replace('{{model}}', first.name)

  return app


GUARDED = ('/predict', '/image', '/text', '/metrics')
OPEN = ('/healthz', '/', '/docs', '/openapi.json')
