"""The one exception for mistakes in what a person handed us."""


class UserError(ValueError):
  """Bad input, shown without a traceback.

  The message says what was given, what is allowed and what to do.
  """
