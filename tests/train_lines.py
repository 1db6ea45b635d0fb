"""Run by torchrun in the tests: `train_lines.py FILE` carries out the command lines of a JSON file in turn."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from dho_plugin.train import main

torch.set_num_threads(1)
Accelerator.end_training = lambda self: None  # the processes stay together for the next line
for line in json.loads(Path(sys.argv[1]).read_text()):
    code = main(line)
    if code:
        sys.exit(code)
