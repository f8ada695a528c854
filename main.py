"""Trains and evaluates Factorizable Net.

`python main.py --config configs/shapes.py --mode train`.
"""

import sys

from fnet_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
