"""One tracked Prefect task a stage, around the functions of ``deepcompression``."""

import os

from tasks.machine.environment import prepare

prepare(os.environ)  # before Prefect and MLflow read it
