"""The page of a model on a free loopback port, for the tests of it."""

from contextlib import contextmanager


@contextmanager
def serving(served):
    """Yields the page's address."""
    from adapt_recipes.dial.serve import launch

    page = launch(served, port=None, block=False)
    try:
        yield page.local_url
    finally:
        page.close(verbose=False)
