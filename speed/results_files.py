"""Time and memory of `eql-d2 evaluate` on results files of LVIS val's size: 19,809 images, 1,203 categories.

    python -m speed.results_files --images 19809 --detections 300 --bootstrap 1000
    python -m speed.results_files --images 19809 --detections 300 --iou-type segm

Writes the two files into a folder (boxes 0.6 GB, masks 2.5 GB; it is removed), runs the command in a process of its
own, and prints the CPU seconds and the peak of the resident set of the whole process. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from speed.synthetic import synthetic_lvis

IMAGES_MADE = 250  # the others repeat them, under ids of their own


def write_files(folder: Path, images: int, detections: int, with_masks: bool) -> tuple[Path, Path]:
    """Results and annotations; what is made of a few images is written again and again."""
    part, found = synthetic_lvis(min(images, IMAGES_MADE), detections, with_masks)
    truth: dict = {"images": [], "annotations": [], "categories": part["categories"]}
    results = folder / "results.json"
    with open(results, "w") as file:
        for first in range(0, images, IMAGES_MADE):
            made = min(IMAGES_MADE, images - first)
            shifted = [{**result, "image_id": result["image_id"] + first} for result in found]
            some = [result for result in shifted if result["image_id"] <= first + made]
            file.write(("," if first else "[") + json.dumps(some, default=bytes.decode)[1:-1])
            truth["images"] += [{**image, "id": image["id"] + first} for image in part["images"][:made]]
            truth["annotations"] += [
                {**a, "id": a["id"] + first * 1000, "image_id": a["image_id"] + first}
                for a in part["annotations"]
                if a["image_id"] <= made
            ]
        file.write("]")
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(truth))
    return results, annotations


# In the process itself: what the system says of a child starts with its parent's peak.
COMMAND = """
import resource, sys
from eql_d2.cli import main
code = main(["evaluate", *sys.argv[1:]])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(f"{used.ru_utime + used.ru_stime:.1f} CPU s, peak {peak / 1024:.0f} MiB")
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=19_809)
    parser.add_argument("--detections", type=int, default=300, help="of an image")
    parser.add_argument("--iou-type", choices=("bbox", "segm"), default="bbox")
    parser.add_argument("--bootstrap", type=int, help="drawings; default: no intervals")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results, annotations = write_files(Path(folder), args.images, args.detections, args.iou_type == "segm")
        arguments = [results, annotations, "--iou-type", args.iou_type]
        arguments += ["--bootstrap", args.bootstrap] if args.bootstrap else []
        sizes = [f"{path.name} {path.stat().st_size / 2**30:.2f} GiB" for path in (results, annotations)]
        print(", ".join(sizes), flush=True)
        command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


if __name__ == "__main__":
    main()
