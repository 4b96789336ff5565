"""Build a bundle's engine for this machine: the same as `dgiqa-rt build`, with the same options.

python export/build_engine.py --fp16
python export/build_engine.py --int8 --calib photos --backend onnxruntime
"""

from __future__ import annotations

import sys

from dgiqa.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "build")
    main()
