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
    stage, place = run.stage("clusters"), list(CLUSTERINGS)
    contents = {name: call.artifact.content for name, call in run.call(stage).inputs.items()}
    found = {}
    for artifact in run.store.artifacts():
        facts, options = artifact.manifest, dict(artifact.manifest["params"])
        if artifact.stage != stage.name or facts["version"] != stage.version:
            continue
        name, revision = options.pop("clustering"), options.pop("revision")
        same = options.pop("seed") == run.params.seed and options.pop("classes") == run.classes
        known = name in CLUSTERINGS and revision == CLUSTERINGS[name].revision
        if same and known and facts["contents"] == contents:
            title = ", ".join(filter(None, [name, as_setting(options)]))
            found[place.index(name), title] = artifact.table("labels")["label"].to_numpy(copy=True)
    return {title: found[at, title] for at, title in sorted(found)}
