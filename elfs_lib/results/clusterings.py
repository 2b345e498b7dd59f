"""The clusterings of a run's embeddings that were made so far, for the page that compares them."""

from __future__ import annotations

import numpy as np

from elfs_lib.clustering.registry import CLUSTERINGS
from elfs_lib.results.provenance import as_setting
from elfs_lib.stages.run import Run


def stored_clusterings(run: Run) -> dict[str, np.ndarray]:
    """Labels int64 [N] of each clustering that the store holds of a run's embeddings, with its seed
    and number of classes. Nothing is clustered.

    Returns:
        In the order of the registry, by name, with the options that were set; without TEMI, whose
        heads have a stage of their own.
    """
    stage = run.stage("clusters")
    contents = {name: call.artifact.content for name, call in run.call(stage).inputs.items()}
    found = {}
    for artifact in run.store.artifacts():
        facts = artifact.manifest
        if (artifact.stage, facts["version"], facts["contents"]) != (
            stage.name,
            stage.version,
            contents,
        ):
            continue
        options = dict(facts["params"])
        name, revision = options.pop("clustering"), options.pop("revision")
        if (options.pop("seed"), options.pop("classes")) != (run.params.seed, run.classes):
            continue
        if name in CLUSTERINGS and revision == CLUSTERINGS[name].revision:
            title = ", ".join(filter(None, [name, as_setting(options)]))
            found[title] = artifact.table("labels")["label"].to_numpy(copy=True)
    place = list(CLUSTERINGS)
    return dict(sorted(found.items(), key=lambda item: place.index(item[0].partition(",")[0])))
