"""Train a model and trace its facts while it trains: the same as ``ftrace fit``, from a clone.

python train.py fit --config configs/synth_demo.yaml
"""

import sys

from ftrace.commands.fit import main

if __name__ == "__main__":
    sys.exit(main())
