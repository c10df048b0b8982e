"Instruction and preference datasets for any language: start with `load_rows`, `run.run` and a recipe."

__version__ = "0.2.0"


def __getattr__(name):
    "`load_rows`, imported only when asked for: `import llmdata_nb` stays quick."
    if name != "load_rows": raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .rows import load_rows
    return load_rows
