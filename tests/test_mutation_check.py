"""`make mutation` breaks code that is there: each of its changes has exactly one place."""

from __future__ import annotations

import pytest
from mutation_check import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_the_code_of_a_mutation_is_there(mutation: Mutation):
    code = (ROOT / "elfs_lib" / mutation.file).read_text()
    assert code.count(mutation.old) == 1 and mutation.new != mutation.old
    assert (ROOT / "tests" / mutation.test.split("::")[0]).is_file()
