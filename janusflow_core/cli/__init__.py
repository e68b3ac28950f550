"""The command line: `janusflow --help` lists the commands, each of which is one class in a file of its own.

torch and everything that imports it are loaded by the command that needs them, so that help comes at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from .options import one_line

TRAINS = ("tiny", "lora", "recipe")  # what may stand behind `train`: any other word is a recipe's


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what the user can mend ends in one line on stderr and status 2."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given == ["--version"]:
        print(f"janusflow {__version__}")
        return 0
    try:
        return parse(given).run()
    except KeyboardInterrupt:
        return 130
    except (ValueError, ImportError, OSError) as error:
        return refused(str(error))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = str(error).partition(". ")[0][:200]
        return refused(f"there is not enough memory ({reason}): ask for fewer or smaller pictures at once")


def spelt_out(argv: Sequence[str]) -> list[str]:
    """The arguments, with `train RECIPE` as the `train recipe RECIPE` that it means."""
    given = list(argv)
    if given[:1] == ["train"] and len(given) > 1 and given[1] not in TRAINS and not given[1].startswith("-"):
        given.insert(1, "recipe")
    return given


def refused(reason: str) -> int:
    """Say in one line why a command ended, and return its status."""
    from ..values import printable

    print(f"janusflow: {printable(one_line(reason))}", file=sys.stderr)
    return 2


def out_of_memory(error: Exception) -> bool:
    """Whether an error, by torch or by Python, says that no memory is left; torch is not imported for that."""
    told = ("can't allocate memory", "cannot allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in told)


def parse(argv: Sequence[str]) -> Any:
    """The command that the arguments ask for; help and misspelt arguments leave the program."""
    try:
        import tyro
    except ImportError as error:
        raise ImportError('the command line needs tyro: pip install "tyro>=1.0"') from error
    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    return tyro.extras.subcommand_cli_from_dict(
        commands(),
        prog="janusflow",
        args=spelt_out(argv),
        config=config,
        description=f"JanusFlow {__version__}: one small model that draws pictures and reads them.",
    )


def commands() -> dict[str, type]:
    """Name -> class of every command; their files need tyro."""
    from .bench import Bench
    from .bulk import Bulk
    from .caption import Caption
    from .convert import Convert
    from .demo import Demo
    from .describe import Describe
    from .doctor import Doctor
    from .download import Download
    from .evaluate import Evaluate
    from .generate import Generate, Sweep
    from .train import Train

    return {
        "generate": Generate,
        "sweep": Sweep,
        "describe": Describe,
        "caption": Caption,
        "bulk": Bulk,
        "convert": Convert,
        "download": Download,
        "doctor": Doctor,
        "demo": Demo,
        "evaluate": Evaluate,
        "train": Train,
        "bench": Bench,
    }
