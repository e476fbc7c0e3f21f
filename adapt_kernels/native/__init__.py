"""The C++ and CUDA sources of csrc/: found, compiled on first use, kept in a cache, launched."""
