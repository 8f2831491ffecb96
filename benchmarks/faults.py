"""Disturb every command in every way that happens to people, and say how often nothing was lost and nothing was wrong.

    python benchmarks/faults.py [--trials 5] [--faults kills signals ...] [--commands fit index ...] [--resumes 50]

Kills with SIGKILL and signals at random times; disks that fill up (root may mount one in memory, for others these are
left out); a file that is read with a bit flipped, or cut; the same command twice at once. A trial is right if the
command ends by itself or with one line and the right exit code, leaves nothing behind, and, given again, leaves what it
leaves undisturbed. Trainings by one and two processes are stopped, too, and resumed from checkpoints. Exits with 1 if
anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

from fault_commands import COMMANDS, make_base
from fault_resumes import Resumes
from fault_trials import NEED_WRITES, TRIALS, Bench


def main() -> None:
    """Disturb, and print a line for each fault that went wrong, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5, help="of each fault and command")
    parser.add_argument("--faults", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--commands", nargs="+", default=None)
    parser.add_argument("--resumes", type=int, default=0, help="how many trainings are stopped and resumed")
    parser.add_argument("--base", type=Path, help="a run of an earlier call; made there if there is none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = [each for each in COMMANDS if options.commands is None or each.name in options.commands]
    faults = [fault for fault in options.faults if fault != "full disk" or os.geteuid() == 0]
    right: dict[tuple[str, str], tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        base = options.base or Path(name) / "base"
        if not base.exists():
            make_base(base)
        for command in chosen:
            bench = Bench(base, Path(name), random.Random(f"{options.seed} {command.name}"))
            for fault in faults:
                needed = command.writes if fault in NEED_WRITES else command.reads if fault == "damage" else True
                if not needed:
                    continue
                count = 0
                for trial in range(options.trials):
                    wrong = TRIALS[fault](bench, command)
                    count += not wrong
                    if wrong:
                        print(f"WRONG {command.name}, {fault} {trial + 1}: {wrong}", flush=True)
                right[command.name, fault] = count, options.trials
            counts = ", ".join(f"{fault} {n}/{of}" for (one, fault), (n, of) in right.items() if one == command.name)
            print(f"{command.name}: {counts}", flush=True)
        resumes = Resumes(Path(name), random.Random(options.seed))
        wrongs = list(filter(None, (resumes.trial() for _ in range(options.resumes))))
        for wrong in wrongs:
            print(f"WRONG training, {wrong}", flush=True)
        print(f"trainings stopped and resumed: {options.resumes - len(wrongs)}/{options.resumes}")
    print(f"\n| command | {' | '.join(faults)} |\n|---|{'---|' * len(faults)}")
    for command in chosen:
        cells = [right.get((command.name, fault)) for fault in faults]
        print(f"| {command.name} | {' | '.join('' if cell is None else f'{cell[0]}/{cell[1]}' for cell in cells)} |")
    sys.exit(bool(wrongs) or any(count < of for count, of in right.values()))


if __name__ == "__main__":
    main()
