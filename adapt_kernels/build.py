"""`python -m adapt_kernels.build`: compile the native backend now instead of on first use; with --cuda for GPUs too."""

import argparse
import logging
import sys

from adapt_kernels.native import jit, jit_cuda


def main() -> int:
    """Prints the path of each compiled file and the time it took; 1 and the error if one cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m adapt_kernels.build", description=__doc__)
    help = "GPU architectures, such as sm_80 sm_90; no GPU is needed"
    parser.add_argument("--cuda", nargs="+", default=[], metavar="sm_XY", help=help)
    architectures = parser.parse_args().cuda
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        extensions = [jit.native_extension(), *map(jit_cuda.cuda_extension, architectures)]
        for extension in extensions:
            built = jit.build(extension)
            jit.import_built(extension, built.path)
            state = f"compiled in {built.seconds:.1f} s" if built.seconds else "already in the cache"
            print(f"{built.path} ({', '.join(filter(None, (extension.architecture, state)))})")
    except (jit.NativeBuildError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
