"""`python -m dho_plugin.hosts train.py ARGS...`, the same as `dho-host`."""

import sys

from dho_plugin.hosts.launch import main

if __name__ == "__main__":
    sys.exit(main())
