"""ELFS: label-free coreset selection with proxy training dynamics."""

__version__ = "0.1.0"
__all__ = ["__version__", "select"]


def __getattr__(name: str) -> object:
    """Import what a notebook user calls only when it is called: PyTorch takes seconds."""
    if name == "select":
        from elfs_lib.photos.choosing import select

        return select
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
