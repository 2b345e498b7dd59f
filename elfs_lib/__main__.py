"""``python -m elfs_lib``, which is how torchrun starts the command."""

from elfs_lib.cli.commands import main

main()
