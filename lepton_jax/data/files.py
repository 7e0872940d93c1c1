"""Files that a user hands us."""

from lepton_jax.errors import UserError


def read_text(path, kind):
  """(text, bytes) of a UTF-8 file; raises UserError naming the file, and the line where it is not UTF-8.

  `kind` is what stands before the path in --dataset. A byte order mark is no part of the text.
  """
  if not path.is_file():
    raise UserError(f'--dataset={kind}:{path}: no such file')
  content = path.read_bytes()
  try:
    return content.decode('utf-8-sig'), content
  except UnicodeDecodeError as error:
    line = content[:error.start].count(b'\n') + 1
    raise UserError(f'{path}, line {line}: not UTF-8 text') from None
