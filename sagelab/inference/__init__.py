def __getattr__(name: str):
    "`from sagelab.inference import get_model`, without importing anything before it is asked for."
    if name != "get_model": raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sagelab.inference.catalogue import get_model
    return get_model
