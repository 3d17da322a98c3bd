"""What `leanthink bench` measures, on a machine without typer and rich; the flags are the same.

python bench/engine.py --shape qwen2.5-7b --parts floor,decode --out bench/results/engine-qwen2.5-7b
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from leanthink.engine.bench.options import FLAGS, options_from
from leanthink.engine.bench.report import check_new
from leanthink.engine.bench.run import run_into
from leanthink.utils.errors import LeanThinkError


def main() -> None:
    """Measure, and write the result after every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, about in FLAGS.items():
        parser.add_argument(f"--{name}", help=about)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    given = vars(parser.parse_args())
    out, overwrite = given.pop("out"), given.pop("overwrite")
    try:
        check_new(out, overwrite=overwrite)
        run_into(out, options_from(given), tell=partial(print, flush=True))
    except LeanThinkError as error:
        sys.exit(f"bench/engine.py: {error}")


if __name__ == "__main__":
    main()
