"""Is ftrace right on a real pretrained model? SmolLM2-135M-Instruct, against plain transformers, hooks and autograd.

    make real                        # or: pip install "ftrace[real]", then
    python benchmarks/real.py
    python benchmarks/real.py --only prediction spans --prompts known_1000.json

The model is fetched once, 93 MB, and kept in ``data_cache`` (``real_model.py``). Five to ten minutes on two cores and
5 GiB. The exit code is 1 if a line is WRONG, and 2 without a model.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from checked_lines import Line, print_lines
from real_checks import CHECKS, Real
from real_model import CACHE, NotFetchedError, model_folder
from rich.console import Console


def main() -> int:
    """Run the checks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="Where the model is kept.")
    parser.add_argument("--model", type=Path, help="A folder of the model that is there already.")
    parser.add_argument("--prompts", type=Path, help="Prompts whose subjects are looked for, too, such as known_1000.")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="Some of the checks.")
    args = parser.parse_args()
    console = Console(markup=False, highlight=False)
    try:
        real = Real(args.model or model_folder(args.cache, console.print), args.prompts)
    except (NotFetchedError, OSError) as error:
        console.print(f"real: {error}", soft_wrap=True)
        return 2
    lines: list[Line] = []
    for name in args.only:
        began = time.perf_counter()
        lines += CHECKS[name](real)
        console.print(f"{name}: {time.perf_counter() - began:.0f} s")
    return print_lines(console, lines)


if __name__ == "__main__":
    sys.exit(main())
