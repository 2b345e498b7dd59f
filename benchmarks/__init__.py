"""Speed of each stage against a plain baseline, as ratios of alternating runs."""
