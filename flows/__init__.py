"""The DAGs (Prefect flows) and the one workflow command line, ``python -m flows``."""

import os

from tasks.machine.environment import prepare

prepare(os.environ)  # before Prefect reads it
