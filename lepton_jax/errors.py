"""The one exception for mistakes in what a person handed us."""


class UserError(ValueError):
  """Bad input: the message says what was given, what is allowed and what to do; shown without a traceback."""
