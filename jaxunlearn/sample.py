"""`python -m jaxunlearn.sample` is `jaxunlearn sample`: see commands/sample.py.

It is not to be imported: `jaxunlearn.sample` is the library's function.
"""

import sys

from jaxunlearn.commands import sample

if __name__ == "__main__":
  sys.exit(sample.start())
