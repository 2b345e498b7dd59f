"""Clusterings that give pseudo-labels: the registry, TEMI, and what they are measured by."""

from elfs_lib.clustering.metrics import (
    cluster_sizes,
    clustering_accuracy,
    clustering_report,
    collapse_notes,
    contingency,
    kmeans_labels,
    match_clusters,
    matched_confusion,
    quality_table,
)
from elfs_lib.clustering.registry import (
    CLUSTERINGS,
    Clustering,
    ClusteringInputs,
    Clusters,
    cluster,
)

__all__ = [
    "CLUSTERINGS",
    "Clustering",
    "ClusteringInputs",
    "Clusters",
    "cluster",
    "cluster_sizes",
    "clustering_accuracy",
    "clustering_report",
    "collapse_notes",
    "contingency",
    "kmeans_labels",
    "match_clusters",
    "matched_confusion",
    "quality_table",
]
