"""What can be said of an encoder before it is loaded for work."""

from __future__ import annotations

from pathlib import Path

from elfs_lib.embedding.encoders import OWN, check_positive, find_encoder, split_encoders


def check_encoder(
    encoder: str,
    checkpoint: str | Path | None = None,
    *,
    input_size: int | None = None,
    there: bool = True,
) -> None:
    """Raise what :func:`elfs_lib.embedding.embed.embed` would before it sees images; download
    nothing.

    Args:
        there: Whether a checkpoint must be on this machine, as before work; parameters may name one
            that is not.

    Raises:
        ElfsError: for an unknown name, a checkpoint that is missing, unreadable or does not fit,
            and an input size that the model does not take.
    """
    check_positive("input_size", input_size)
    for name, path in split_encoders(encoder, checkpoint).items():
        spec = find_encoder(name, path)
        if path is not None and not (there or path.is_file()):
            continue
        needs_look = spec.architecture and (path is not None or input_size is not None)
        if needs_look or (name == OWN and path is not None):
            from elfs_lib.embedding.networks import check

            check(name, spec, path, input_size)
