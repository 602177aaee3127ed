"""Change single bits in what this program has committed to a disk, and count how many nobody notices.

    python tools/faults/flip_bits.py [--flips 10000] [--seed 0] [--page docs/reliability.md]

Exports, adapters, checkpoints, manifests, journals, caches and sessions are made on tiny models; a random bit
of a random file of each is changed, then `lorafold verify` or the loader that goes on with it is asked. Exits
1 if a change was not noticed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/support/faults"))

from flips import all_kept, flips
from page import processor_seconds, write_figure, write_part

FIGURE = "single-bit flips in committed artifacts, detected"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="rewrite the figures of this page")
    options = parser.parse_args()
    rows, missed, flipped = [], 0, 0
    with tempfile.TemporaryDirectory() as name:
        kinds = list(all_kept(Path(name)))
        count = -(-options.flips // len(kinds))
        for kept in kinds:
            unnoticed = list(flips(kept, count, options.seed))
            print(f"{kept.name}: {count - len(unnoticed):,} of {count:,} noticed", *unnoticed[:5], sep="\n  ")
            files = sum(path.stat().st_size for path in kept.files)
            rows.append(
                f"| {kept.name} | {len(kept.files)} files, {files:,} bytes | {kept.noticed_by} "
                f"| {count - len(unnoticed):,} of {count:,} |"
            )
            missed, flipped = missed + len(unnoticed), flipped + count
    if options.page:
        head = "| what is kept | of it | who notices | noticed |\n|---|---|---|---|"
        write_part(options.page, "flips", "\n".join([head, *rows]))
        command = f"tools/faults/flip_bits.py --flips {options.flips}"
        shown = f"{flipped - missed:,} of {flipped:,}"
        write_figure(options.page, FIGURE, shown, command, processor_seconds())
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
