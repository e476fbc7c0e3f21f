"""`python -m adapt_kernels.build`: compile the native backend now instead of on first use."""

import argparse
import logging
import sys

from adapt_kernels import jit


def main() -> int:
    """Prints the path of the compiled file and the time it took; 1 and the error if it cannot be built."""
    argparse.ArgumentParser(prog="python -m adapt_kernels.build", description=__doc__).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        extension = jit.native_extension()
        built = jit.build(extension)
        jit.import_built(extension, built.path)
    except jit.NativeBuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{built.path} ({f'compiled in {built.seconds:.1f} s' if built.seconds else 'already in the cache'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
