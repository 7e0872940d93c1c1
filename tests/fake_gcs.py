"""A Cloud Storage for tests: buckets in memory behind the JSON API, for the clients that runs use.

gcsfs, google-cloud-storage and TensorStore talk to it as to Google's: single uploads, reads of
ranges, listings, deletions, and writes that fail where the object exists. Objects have generations.
"""

import email
import http.server
import json
import re
import threading
import urllib.parse

SESSION = r'/upload/([^/]+)/o/(.+)'  # of an upload whose content comes after its name
OBJECT = r'(?:/download)?/storage/v1/b/([^/]+)/o/(.+)'


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers requests from `server.objects`, {(bucket, name): (bytes, generation)}."""

  protocol_version = 'HTTP/1.1'
  wbufsize = 1 << 16  # headers and content in one packet, or each answer waits 40 ms

  def log_message(self, *_):
    pass

  def reply(self, status, content=b'', **headers):
    if isinstance(content, dict):
      content = json.dumps(content).encode()
      headers.setdefault('content_type', 'application/json')
    self.send_response(status)
    self.send_header('Content-Length', str(len(content)))
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content)

  def parts(self):
    url = urllib.parse.urlparse(self.path)
    return url.path, dict(urllib.parse.parse_qsl(url.query))

  def described(self, bucket, name):
    content, generation = self.server.objects[bucket, name]
    return dict(kind='storage#object', bucket=bucket, name=name, size=str(len(content)),
                generation=str(generation), updated='2026-01-01T00:00:00.000Z',
                timeCreated='2026-01-01T00:00:00.000Z')

  def do_GET(self):
    path, query = self.parts()
    if match := re.fullmatch(r'/storage/v1/b/([^/]+)(/storageLayout)?', path):
      return self.reply(200, dict(kind='storage#bucket', id=match[1], name=match[1],
                                  location='US', locationType='region'))
    if match := re.fullmatch(r'/storage/v1/b/([^/]+)/o/?', path):
      return self.reply(200, self.listing(match[1], query))
    match = re.fullmatch(OBJECT, path)
    key = match and (match[1], urllib.parse.unquote(match[2]))
    if key not in self.server.objects:
      return self.reply(404, dict(error=dict(code=404, message='Not Found')))
    content, generation = self.server.objects[key]
    if query.get('alt') != 'media':
      return self.reply(200, self.described(*key))
    said = dict(x_goog_generation=str(generation), content_type='application/octet-stream')
    if wanted := re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', '')):
      first = int(wanted[1]) if wanted[1] else len(content) - int(wanted[2])
      last = min(int(wanted[2]) if wanted[1] and wanted[2] else len(content), len(content) - 1)
      if first >= len(content):
        return self.reply(416)
      place = f'bytes {first}-{last}/{len(content)}'
      return self.reply(206, content[first:last + 1], content_range=place, **said)
    return self.reply(200, content, **said)

  do_HEAD = do_GET

  def listing(self, bucket, query):
    prefix, cut = query.get('prefix', ''), query.get('delimiter')
    begin, end = query.get('startOffset', ''), query.get('endOffset')
    names = sorted(name for where, name in self.server.objects if where == bucket
                   and name.startswith(prefix) and name >= begin and (not end or name < end))
    inner = lambda name: cut and cut in name[len(prefix):]
    folders = {prefix + name[len(prefix):].split(cut)[0] + cut for name in names if inner(name)}
    items = [self.described(bucket, name) for name in names if not inner(name)]
    return dict(kind='storage#objects', items=items, prefixes=sorted(folders))

  def do_POST(self):
    path, query = self.parts()
    if re.fullmatch(SESSION, path):
      return self.do_PUT()
    content = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    bucket = re.fullmatch(r'/upload/storage/v1/b/([^/]+)/o', path)
    copied = re.fullmatch(OBJECT + r'/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)', path)
    if copied:
      source = copied[1], urllib.parse.unquote(copied[2])
      target = copied[3], urllib.parse.unquote(copied[4])
      self.put(target, self.server.objects[source][0])
      return self.reply(200, dict(done=True, resource=self.described(*target)))
    name = query.get('name')
    if query['uploadType'] == 'resumable':  # the content comes by PUT
      name = name or json.loads(content)['name']
      place = f'http://{self.headers["Host"]}/upload/{bucket[1]}/o/{urllib.parse.quote(name, "")}'
      condition = f'?ifGenerationMatch={query.get("ifGenerationMatch", "")}'
      return self.reply(200, location=place + condition)
    if query['uploadType'] == 'multipart':
      kind = self.headers['Content-Type'].encode()
      parts = email.message_from_bytes(b'Content-Type: ' + kind + b'\n\n' + content).get_payload()
      name = json.loads(parts[0].get_payload())['name']
      content = parts[1].get_payload(decode=True)
    return self.keep((bucket[1], name), content, query)

  def do_PUT(self):
    """A part of an upload, or the word that it is over."""
    path, query = self.parts()
    content = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    bucket, name = re.fullmatch(SESSION, path).groups()
    key = bucket, urllib.parse.unquote(name)
    part = self.server.parts.setdefault(key, bytearray())
    part += content
    if self.headers.get('Content-Range', '').endswith('/*'):
      return self.reply(308, range=f'bytes=0-{len(part) - 1}')
    return self.keep(key, bytes(self.server.parts.pop(key)), query)

  def keep(self, key, content, query):
    """Writes an object under the conditions of a request."""
    wanted, there = query.get('ifGenerationMatch'), self.server.objects.get(key, (b'', 0))[1]
    if wanted and int(wanted) != there:
      return self.reply(412, dict(error=dict(code=412, message='conditionNotMet')))
    self.put(key, content)
    return self.reply(200, self.described(*key))

  def put(self, key, content):
    self.server.generation += 1
    self.server.objects[key] = content, self.server.generation

  def do_DELETE(self):
    match = re.fullmatch(OBJECT, self.parts()[0])
    there = self.server.objects.pop((match[1], urllib.parse.unquote(match[2])), None)
    return self.reply(204 if there else 404)


class Server(http.server.ThreadingHTTPServer):
  def handle_error(self, *_):
    """Says nothing: clients drop connections that they no longer need."""


def start():
  """A server at a free port of the loopback device; its `objects` are what lies in the buckets."""
  server = Server(('127.0.0.1', 0), Handler)
  server.objects, server.parts, server.generation = {}, {}, 0
  threading.Thread(target=server.serve_forever, daemon=True).start()
  return server
