__version__ = "0.1.0"


def load_ipython_extension(shell) -> None:
    "Make the magics known: `%load_ext sagelab`."
    from sagelab.kernels.magics import load_ipython_extension
    load_ipython_extension(shell)


def unload_ipython_extension(shell) -> None:
    "Take the magics away: `%unload_ext sagelab`."
    from sagelab.kernels.magics import unload_ipython_extension
    unload_ipython_extension(shell)
