"""Files that a user hands us."""

from lepton_jax.errors import UserError

MARK = '\N{REPLACEMENT CHARACTER}'


def read_text(path, kind, mark=False):
  """(text, bytes) of a UTF-8 file; raises UserError naming a file that is missing or not UTF-8.

  The error also names the line that is not UTF-8. `kind` is what stands before the path in
  --dataset. A byte order mark is no part of the text. With `mark`, MARK stands where bytes are not
  UTF-8.
  """
  if not path.is_file():
    raise UserError(f'--dataset={kind}:{path}: no such file')
  content = path.read_bytes()
  try:
    return content.decode('utf-8-sig', 'replace' if mark else 'strict'), content
  except UnicodeDecodeError as error:
    line = content[:error.start].count(b'\n') + 1
    raise UserError(f'{path}, line {line}: not UTF-8 text') from None
