"""What every reader of data returns."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Source:
  """What a reader returns: the splits that the source itself has.

  Attributes:
    version: changes when the content may.
    splits: {'train': (inputs, label), ...} with 'train' always there. inputs uint8[n, h, w, c]
      images, f32[n, columns] or object[n] of str; label int32[n] classes, int32[n, words] classes
      with -1 after the end, or f32[n] values.
    classes: names of the classes; empty for regression.
    columns: names of the input columns of a table; empty for images.
    stream: True for running text, whose inputs and labels are one int32[n] of characters.
    targets: in a series, the places of the predicted columns.
  """
  version: str
  splits: dict
  classes: tuple = ()
  columns: tuple = ()
  stream: bool = False
  targets: tuple = ()
