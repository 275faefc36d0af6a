"""`python -m jaxunlearn.audit` is `jaxunlearn audit`: see commands/audit.py."""

import sys

from jaxunlearn.commands import audit

if __name__ == "__main__":
  sys.exit(audit.start())
