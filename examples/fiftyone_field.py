"""A field of scores in a FiftyOne dataset: sort by it in the app, or match on it.

pip install "dgiqa-rt[cpu]" fiftyone
"""

from __future__ import annotations

from typing import Any

from dgiqa import Score, Scorer


def add_quality(dataset: Any, scorer: Scorer, field: str = "quality") -> int:
    """Set `field` and `field_reasons` of every sample of a dataset or view; returns how many have no score."""
    failed = 0
    samples = {sample.id: sample for sample in dataset}
    found = scorer.score_many((sample.id, sample.filepath) for sample in samples.values())
    for result in found:
        sample = samples[result.source]
        if isinstance(result, Score):
            sample[field], sample[f"{field}_reasons"] = result.value, list(result.faults)
        else:
            failed += 1
            sample[field] = None
        sample.save()
    return failed


if __name__ == "__main__":
    import sys

    import fiftyone

    dataset = fiftyone.Dataset.from_images_dir(sys.argv[1])
    with Scorer("small") as scorer:
        print(f"{add_quality(dataset, scorer)} of {len(dataset)} samples have no score")
    fiftyone.launch_app(dataset.sort_by("quality")).wait()
